"""OlympiadBench, the open-ended English maths problems without pictures; answers are lists of LaTeX.

The hub has 674 of them; the copy of Qwen2.5-Math, which most papers use, has 675.
"""

from .base import BenchmarkError
from .table import Hub, Row, Table, answer_column, question_column


def answer(row: Row) -> str:
    """The entries of ``final_answer`` (a list, or one text) joined, without their dollar signs."""
    final = row.get("final_answer")
    parts = [final] if isinstance(final, str) else final or [answer_column(row)]
    return ", ".join(str(part).replace("$", "").strip() for part in parts)


def question(row: Row) -> str:
    """The question, after the context that it belongs to, where there is one."""
    if row.get("modality") not in (None, "Text-only"):
        raise BenchmarkError(
            f"olympiadbench: problem {row.get('id')} needs a picture: use the text-only part, OE_TO_maths_en_COMP"
        )
    return "\n".join(str(part) for part in (row.get("context"), question_column(row)) if part)


OLYMPIADBENCH = Table(
    "olympiadbench",
    Hub("Hothan/OlympiadBench", "91184b52131e7fc9455fef848035173aea8cc01a", "train", config="OE_TO_maths_en_COMP"),
    rows=(674, 675),
    answer=answer,
    question=question,
)
