"""HMMT'25: 30 problems of the Harvard-MIT Mathematics Tournament of February 2025; answers are LaTeX."""

from .table import Hub, Table

HMMT25 = Table(
    "hmmt25",
    Hub("MathArena/hmmt_feb_2025", "6fdc4277120810ff75aa22d2d5489b91f7a262a1", "train"),
    rows=(30,),
)
