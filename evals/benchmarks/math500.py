"""MATH-500: 500 problems of MATH's test set (Lightman et al. 2023); answers are LaTeX."""

from .table import Hub, Table

MATH500 = Table(
    "math500",
    Hub("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test"),
    rows=(500,),
)
