"""MinervaMath: 272 problems of undergraduate science; some copies have answers only in the last box."""

from arrol_tts.answers import extract_answer

from .table import Hub, Row, Table, answer_column


def answer(row: Row) -> str:
    """The column ``answer``, else the last ``\\boxed`` of the solution."""
    solution = str(row.get("solution") or "")
    return answer_column(row) or (extract_answer(solution) or "" if "\\boxed" in solution else "")


MINERVA_MATH = Table(
    "minerva_math",
    Hub("math-ai/minervamath", "ee46ddc498933b1977577953250ca5c66be64f96", "test"),
    rows=(272,),
    answer=answer,
)
