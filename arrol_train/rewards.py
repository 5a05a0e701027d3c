"""Rewards: was a rollout right, 1, or not, 0.

The head's posterior is a probability of being right, so rewards are 0 or 1; graded scores are thresholded
where they arise.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from arrol_tts.answers import answers_equal, extract_answer
from arrol_tts.errors import InputError
from arrol_tts.pocket import verify

Row = Mapping[str, Any]
"""A question: ``question``, ``answer`` and whatever else its source gave."""

Reward = Callable[[Row, str], float]
"""Takes a question and a rollout's text, returns 0 or 1."""

REASONS = 3
"""Failures of a reward function that are remembered with their reason."""


def pocket_reward(row: Row, text: str) -> float:
    """Whether the answer is exactly the value of the pocket expression."""
    return float(verify(row["question"], extract_answer(text)))


def math_reward(row: Row, text: str) -> float:
    """Whether the answer equals the row's mathematically (see ``arrol_tts.answers``)."""
    answer = extract_answer(text)
    return float(answer is not None and answers_equal(answer, row["answer"]))


def reasoning_gym_reward(row: Row, text: str) -> float:
    """Whether reasoning-gym gives the answer its full score: it gives partial credit, which counts as wrong.

    The row carries ``dataset``, the name of its reasoning-gym dataset, and ``entry``, its JSON.
    """
    answer = extract_answer(text)
    entry = json.loads(row["entry"])
    return float(answer is not None and _scorer(row["dataset"])(answer=answer, entry=entry) >= 1.0)


@cache
def _scorer(dataset: str) -> Callable[..., float]:
    import reasoning_gym

    scorer: Callable[..., float] = reasoning_gym.create_dataset(dataset, size=1, seed=0).score_answer
    return scorer


def load_reward(name: str) -> Reward:
    """Import a reward function by ``module:function``, from the working directory too.

    Raises:
        InputError: when there is none.
    """
    module, _, function = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:  # as ``python -m`` has it, and a command of its own has not
        sys.path.insert(0, here)
    try:
        reward: Reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"the reward {name!r} cannot be imported as module:function: {error}") from None
    return reward


class Grader:
    """Calls a reward function, one rollout at a time, and survives what it does wrong on single rollouts.

    A rollout on which it raises, or takes longer than the timeout, is *ungraded*: it has no reward, which is not
    the same as 0, and counts in no mean. A call that hangs cannot be ended: its thread is left behind.

    Args:
        reward: the function.
        timeout: seconds.

    Attributes:
        calls: rollouts that were to be graded so far.
        failures: those that could not be.
        reasons: what happened on the last few of these.
    """

    def __init__(self, reward: Reward, timeout: float) -> None:
        self.calls = 0
        self.failures = 0
        self.reasons: deque[str] = deque(maxlen=REASONS)
        self._reward = reward
        self._timeout = timeout
        self._lock = threading.Lock()

    def __call__(self, row: Row, text: str) -> float | None:
        """Grade a rollout: 0.0 or 1.0, None where it could not be graded, with a warning.

        Raises:
            InputError: when the function works, but returns anything but 0 and 1.
        """
        outcome: list[Any] = []

        def grade() -> None:
            try:
                outcome.append(self._reward(row, text))
            except BaseException as error:  # whatever it is, it must not look like a hang
                outcome.append(error)

        with self._lock:
            self.calls += 1
            thread = threading.Thread(target=grade, daemon=True)
            thread.start()
            thread.join(self._timeout)
            if not outcome:
                self._note(f"took longer than {self._timeout:g} s", text)
                return None
            value = outcome[0]
            if isinstance(value, BaseException):
                self._note(f"raised {type(value).__name__}: {value}", text)
                return None
        if value not in (0, 1):
            raise InputError(
                f"the reward function returned {value!r}; the head's posterior needs rewards that are 0 or 1: "
                "threshold a graded score (score >= 1.0)"
            )
        return float(value)

    def _note(self, what: str, text: str) -> None:
        self.failures += 1
        self.reasons.append(what)
        warnings.warn(
            f"the reward function {what} on a rollout that ends {text[-80:]!r}; it has no reward and is left out "
            f"({self.failures} such rollouts so far)",
            stacklevel=3,
        )
