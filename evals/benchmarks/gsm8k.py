"""GSM8K: 1,319 word problems of primary school; the answer follows "####" in the worked solution."""

from .shots import WORD_PROBLEM_SHOTS
from .table import Hub, Row, Table, answer_column


def answer(row: Row) -> str:
    """What follows the last "####", without the commas that group digits; empty without that mark."""
    _, mark, number = answer_column(row).rpartition("####")
    return number.replace(",", "").strip() if mark else ""


GSM8K = Table(
    "gsm8k",
    Hub("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", "test", config="main"),
    rows=(1319,),
    answer=answer,
    shots=WORD_PROBLEM_SHOTS,
)
