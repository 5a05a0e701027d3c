"""BRUMO'25: 30 problems of the Brown University Math Olympiad 2025; answers are LaTeX."""

from .table import Hub, Table

BRUMO25 = Table(
    "brumo25",
    Hub("MathArena/brumo_2025", "6de9bc0987f5710c6376ee980e1483dbeb55cfda", "train"),
    rows=(30,),
)
