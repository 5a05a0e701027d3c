"""Answers: extracting them from solutions, and grouping them by equality.

``1/2``, ``0.5``, ``\\frac12`` and ``\\dfrac{2}{4}`` are one answer. So are ``x=5`` and ``5``, ``{1,2}`` and
``2, 1``, ``x>3`` and ``(3,\\infty)``, ``10,\\!080`` and ``10080``, ``15\\text{ cm}^2`` and ``15``.

What mathematical equality means here:

- Numbers are exact. ``0.333`` is not ``1/3``: a tolerance would not be transitive.
- ``50%`` is ``0.5`` and not ``50``. For questions that ask "what per cent", where the sign is a unit that
  models write or leave out, say ``percent="unit"``: then ``50%`` is ``50`` and not ``0.5``.
- Units, currencies and degree signs are dropped, since a question asks in one unit: ``5 cm`` is ``5``.
  ``\\sin 30^\\circ`` is 1/2, and words that change a number stay: ``2 thirds`` is not ``2``.
- A name on the left is dropped: ``y=2x+3`` is ``2x+3``. In ``x=1, y=2`` the names differ and stay.
- Equations in x and y are the lines or curves that they are: ``x+y=5`` is ``y=5-x``.
- Lists and sets have no order. ``(1,2)`` has, and is the same as a point and as an open interval.
- ``and`` between conditions is an intersection, ``or`` a union: ``x>2 and x<5`` is ``(2,5)``.
- Variables are taken to be positive, so that the root of x squared is x; i, j, k, l, m, n are whole.
- ``|x-10|`` is neither ``x-10`` nor ``10-x``: a function of pieces is compared on all of them.
- Upper and lower case differ in formulas (``R``, ``r``), not in words.
- A number in a stated base, ``52_8``, equals only itself.
- What cannot be read, or not within fixed bounds of length, depth, size and work, equals the same text only.

Other questions have other equalities: ``text``, ``exact``, ``choice``, ``json``, or a function of your own
(see `arrol_tts.answers.equality.key_function`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from arrol_tts.answers.canonical import PercentSign
from arrol_tts.answers.equality import Equality, EqualityName, key_function
from arrol_tts.answers.extract import Extractor, extract_answer
from arrol_tts.errors import InputError, WrongTypeError

__all__ = [
    "Equality",
    "EqualityName",
    "Extractor",
    "PercentSign",
    "answers_equal",
    "canonical_answer",
    "extract_answer",
    "group_answers",
    "key_function",
]


def _check(answer: object) -> str:
    if not isinstance(answer, str):
        raise WrongTypeError(
            f"answer {answer!r} is {type(answer).__name__}; answers are strings: pass str(answer), or None "
            "to group_answers where a sample has no answer"
        )
    return answer


def answers_equal(a: str, b: str, *, equality: Equality = "math", percent: PercentSign = "fraction") -> bool:
    """Whether two answers are equal.

    An equivalence: reflexive, symmetric and transitive. Safe on any string and in any thread.

    Args:
        a, b: answers, without the text around them (see ``extract_answer``).
        equality: ``math``, ``text``, ``exact``, ``choice``, ``json``, or a function ``answer -> key``
            (see ``key_function``).
        percent: what a per cent sign means in ``math``, a ``fraction`` or a ``unit``.

    Raises:
        WrongTypeError: an answer is no string.
        InputError: there is no such ``equality`` or ``percent``.
    """
    key = key_function(equality, percent)
    return _check(a) == _check(b) or key(a) == key(b)


def group_answers(
    answers: Sequence[str | None], *, equality: Equality = "math", percent: PercentSign = "fraction"
) -> list[int]:
    """Group answers by equality; each distinct string is read once.

    Args:
        answers: the answers to one question; None where a sample has none.
        equality, percent: as in ``answers_equal``.

    Returns:
        A class id for each answer, -1 for None. Ids count from 0 in the order of the classes' simplest
        spellings (shortest, then lexicographic), so they do not depend on the order of the answers.

    Raises:
        WrongTypeError: an answer is neither a string nor None.
        TypeError: a function of yours gives a key that has no hash.
        InputError: there is no such ``equality`` or ``percent``.
    """
    key = key_function(equality, percent)
    distinct = {_check(answer) for answer in answers if answer is not None}
    classes: dict[Hashable, int] = {}
    ids: dict[str | None, int] = {None: -1}
    for answer in sorted(distinct, key=_simplicity):
        ids[answer] = classes.setdefault(key(answer), len(classes))
    return [ids[answer] for answer in answers]


def canonical_answer(answers: Sequence[str]) -> str:
    """The spelling that stands for a class: the most frequent, then the shortest, then the first by text.

    Raises:
        InputError: there are no answers.
        WrongTypeError: an answer is no string.
    """
    if not answers:
        raise InputError("no answers: a class has at least one spelling")
    counts = Counter(_check(answer) for answer in answers)
    return min(counts, key=lambda answer: (-counts[answer], *_simplicity(answer)))


def _simplicity(answer: str) -> tuple[int, str]:
    return len(answer), answer
