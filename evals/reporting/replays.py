"""Ways of spending fewer tokens on a question, replayed over traces that were sampled in full.

The traces of a question could have come in any order, so a way that looks at one after the other is replayed over
several random orders. Its setting is chosen on other questions than those it is reported on, see `cheapest`, and
every row has its equal-token control.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from arrol_tts.metrics import Floats
from arrol_tts.replay import replay
from arrol_tts.stopping import ConfidenceFloor
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from arrol_tts.waves import Waves, replay_waves

from ..sampling.seed_samples import SeedSamples
from .baselines import adaptive_consistency, early_stopping_self_consistency, until_clear
from .figures import Row, control_of, full_votes

ORDERS = 8
"""Random orders of a question's traces that a replay is the mean over."""

WITHIN = 0.005
"""How far below the vote over all traces a setting may be on the questions it is chosen on."""


WINDOWS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Of DeepConf online, in tokens, 2048 being the published one."""

CLEAR = 0.95
"""Share of the vote with which DeepConf online asks for no more traces, as published."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way of spending fewer tokens, at one setting.

    Attributes:
        name: of the way, whatever its setting.
        method: voting method of what it samples.
        setting: by the names of its options.
        spend: takes the traces of a question in the order of sampling, and gives what of them would have been
            sampled.
    """

    name: str
    method: str
    setting: Mapping[str, float]
    spend: Callable[[Sequence[Trace]], Sequence[Trace]]


def ways(voter: WeightedVoter, n: int, windows: Sequence[int] = WINDOWS) -> dict[str, list[Way]]:
    """``{name: the way at every setting that is to choose from}``; waves by the head only where there is one.

    Args:
        voter: with the head's options of voting.
        n: traces of a question.
        windows: of DeepConf online, see `windows_below`.
    """
    found = {
        "adaptive_consistency": list(_adaptive_consistency(voter)),
        "esc": list(_esc(voter)),
        "deepconf_online": list(_deepconf_online(voter, n, windows)),
    }
    if voter.config is not None:
        found = {"waves": list(_waves(voter, n))} | found
    return found


def windows_below(samples: SeedSamples) -> list[int]:
    """Those of `WINDOWS` shorter than the longest trace: DeepConf online stops none before a whole window."""
    longest = max(trace.num_tokens for group in samples.full.values() for trace in group)
    return [window for window in WINDOWS if window < longest]


def _waves(voter: WeightedVoter, n: int) -> Iterator[Way]:
    assert voter.config is not None
    own = voter.config.voting.get("quality", {})
    options = {"method": "quality", "equality": voter.equality, "percent": voter.percent, **own}
    for start, step in ((2, 1), (2, 2), (4, 1), (4, 2), (4, 4)):
        for certainty in (0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
            if start <= n:
                waves = Waves(start, step, certainty)
                setting = {"start": start, "step": step, "certainty": certainty}
                asked = partial(replay_waves, waves=waves, **options)
                yield Way("waves", "quality", setting, asked)


def _adaptive_consistency(voter: WeightedVoter) -> Iterator[Way]:
    for certainty in (0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
        asked = _asked(voter, partial(adaptive_consistency, certainty=certainty))
        yield Way("adaptive_consistency", "majority", {"certainty": certainty}, asked)


def _esc(voter: WeightedVoter) -> Iterator[Way]:
    for window in (2, 3, 4, 5, 8):
        asked = _asked(voter, partial(early_stopping_self_consistency, window=window))
        yield Way("esc", "majority", {"window": window}, asked)


def _asked(
    voter: WeightedVoter, decide: Callable[[Sequence[int]], int]
) -> Callable[[Sequence[Trace]], Sequence[Trace]]:
    return lambda traces: traces[: decide(voter.vote(traces, "majority").choices)]


def _deepconf_online(voter: WeightedVoter, n: int, windows: Sequence[int]) -> Iterator[Way]:
    for window in windows:
        for warmup in sorted({max(1, n // 8), max(1, n // 4), max(1, n // 2)}):
            for keep in (0.1, 0.5, 0.9):
                rule = ConfidenceFloor(warmup, keep, window)
                setting = {"warmup": warmup, "keep": keep, "window": window}
                yield Way("deepconf_online", "deepconf", setting, partial(replay, rule=rule))
                clear = {**setting, "consensus": CLEAR}
                yield Way("deepconf_online", "deepconf", clear, _until_clear(voter, rule))


def _until_clear(voter: WeightedVoter, rule: ConfidenceFloor) -> Callable[[Sequence[Trace]], Sequence[Trace]]:
    def spend(traces: Sequence[Trace]) -> Sequence[Trace]:
        stopped = replay(traces, rule)
        result = voter.vote(stopped, "deepconf")
        return stopped[: until_clear(result.choices, result.weights, CLEAR, rule.warmup)]

    return spend


def in_random_orders(traces: Sequence[Trace], orders: int, seed: int) -> Iterator[list[Trace]]:
    """The traces of a question in random orders, numbered by them."""
    rng = random.Random(f"{seed}/{traces[0].question_id}")
    for _ in range(orders):
        order = rng.sample(traces, len(traces))
        yield [replace(trace, sample_id=i) for i, trace in enumerate(order)]


def spent(
    way: Way, samples: Sequence[SeedSamples], voter: WeightedVoter, orders: int = ORDERS
) -> tuple[Floats, Floats]:
    """How often the vote is right and what it costs, float64 ``[questions]`` each: means over orders and seeds."""
    right, tokens = [], []
    for one in samples:
        for group in one.full.values():
            sampled = [way.spend(order) for order in in_random_orders(group, orders, one.seed)]
            right.append(np.mean([bool(voter.vote(traces, way.method).correct) for traces in sampled]))
            tokens.append(np.mean([sum(trace.num_tokens for trace in traces) for traces in sampled]))
    shape = len(samples), -1
    return np.reshape(right, shape).mean(axis=0), np.reshape(tokens, shape).mean(axis=0)


def row_of(way: Way, samples: Sequence[SeedSamples], voter: WeightedVoter, orders: int = ORDERS) -> Row:
    """A way on the questions that it is reported on, with its equal-token control."""
    right, tokens = spent(way, samples, voter, orders)
    control = control_of(full_votes(samples, voter, way.method), float(tokens.mean()))
    return Row(way.name, way.method, right, tokens, control=control)


def cheapest(
    settings: Sequence[Way], samples: Sequence[SeedSamples], voter: WeightedVoter, orders: int = 2
) -> Way:
    """The setting to report, chosen on other questions: the cheapest that loses next to nothing.

    That with the fewest tokens whose vote is at most `WITHIN` less often right than the same vote over all traces;
    when there is none, the one that is right most often.

    Args:
        settings: one way at several settings.
        samples: of questions that nothing is reported on.
        voter: votes.
        orders: as in `spent`.
    """
    method = settings[0].method
    whole = np.mean([bool(r.correct) for of_seed in full_votes(samples, voter, method) for r in of_seed])
    tried = []
    for way in settings:
        right, tokens = spent(way, samples, voter, orders)
        tried.append((way, float(right.mean()), float(tokens.mean())))
    enough = [one for one in tried if one[1] >= whole - WITHIN]
    if enough:
        return min(enough, key=lambda one: one[2])[0]
    return max(tried, key=lambda one: (one[1], -one[2]))[0]
