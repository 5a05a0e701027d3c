"""AIME'25: 30 problems, answers are whole numbers from 0 to 999."""

from .table import Hub, Table

AIME25 = Table(
    "aime25",
    Hub("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test"),
    rows=(30,),
)
