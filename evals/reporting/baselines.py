"""Published ways to ask for fewer traces of a question, as decisions over answers in the order of sampling.

`Consensus` and `Waves` are what voters offer; these are what they are compared with, over recorded answers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache

from arrol_tts.consensus import most_likely
from arrol_tts.errors import InputError


def adaptive_consistency(choices: Sequence[int], certainty: float = 0.95) -> int:
    """Adaptive-Consistency with the Beta criterion (arXiv 2305.11860, section 3): trace by trace, until sure.

    Args:
        choices: the answer class of each trace, in the order of sampling; negative: no answer, which votes for
            nothing.
        certainty: stop once the leader is the likelier one of the two leading answers with this probability
            (published: 0.95).

    Returns:
        How many traces it samples, from 1 to all.
    """
    votes: Counter[int] = Counter()
    for asked, choice in enumerate(choices, 1):
        if choice >= 0:
            votes[choice] += 1
            leader, second = [count for _, count in (*votes.most_common(2), (-1, 0))][:2]
            if _most_likely(leader, second) >= certainty:
                return asked
    return len(choices)


@lru_cache(maxsize=4096)
def _most_likely(leader: int, second: int) -> float:
    return most_likely(leader, second)


def until_clear(choices: Sequence[int], weights: Sequence[float], share: float, warmup: int) -> int:
    """DeepConf's adaptive sampling (arXiv 2508.15260, section 3.3): trace by trace, until the vote is clear.

    Args:
        choices: as in :func:`adaptive_consistency`.
        weights: what each trace's vote counts.
        share: stop once the leader has this share of the weight (published: 0.95).
        warmup: traces that are sampled in any case.

    Returns:
        How many traces it samples, from the warm-up to all.
    """
    votes: defaultdict[int, float] = defaultdict(float)
    for asked, (choice, weight) in enumerate(zip(choices, weights, strict=True), 1):
        if choice >= 0:
            votes[choice] += weight
        if asked >= warmup and votes and max(votes.values()) >= share * sum(votes.values()):
            return asked
    return len(choices)


def early_stopping_self_consistency(choices: Sequence[int], window: int) -> int:
    """ESC (arXiv 2401.10480): window by window, until one of them is unanimous.

    Args:
        choices: as in :func:`adaptive_consistency`; a trace without an answer agrees with nobody.
        window: traces of a window; the last one may be smaller.

    Returns:
        How many traces it samples, from 1 to all.

    Raises:
        InputError: when the window is below 2: one trace always agrees with itself.
    """
    if window < 2:
        raise InputError(f"window is {window}; it must be at least 2")
    for start in range(0, len(choices), window):
        seen = choices[start : start + window]
        if len(seen) == window and len({*seen}) == 1 and seen[0] >= 0:
            return start + window
    return len(choices)
