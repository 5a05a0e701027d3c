"""AIME'24: 30 problems, answers are whole numbers from 0 to 999."""

from .table import Hub, Table

AIME24 = Table(
    "aime24",
    Hub("HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "train"),
    rows=(30,),
)
