"""Traces whose rows are added up by slots have the logs of traces looked at row by row, to the last bit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists

from arrol_tts.engine.signals import HeadKind
from arrol_tts.engine.vllm_plugin import coasting
from arrol_tts.engine.vllm_plugin.coasting import Coasting
from arrol_tts.engine.vllm_plugin.messages import Signals
from arrol_tts.engine.vllm_plugin.scheduler import QualityHeadScheduler
from arrol_tts.stopping import Budget, ConfidenceFloor, KeepShare, Monitor, Threshold, TraceLog, TraceSpec

HEADS = {
    "": HeadKind(),
    "pooled": HeadKind(width=2, stride=3),
    "whole": HeadKind(width=2),
    "steps": HeadKind(pool_after=frozenset({1, 2})),
}
SPECS = (
    TraceSpec(score_at=(4, 30), head="pooled"),
    TraceSpec(score_at=(9,), score_finish=True, head="steps", self_certainty=True),
    TraceSpec(score_every=7, live=True, head="whole"),
    TraceSpec(score_every=1),
    TraceSpec(score_every=1, score_finish=True, confidence=True, head="whole"),
    TraceSpec(score_every=1, head="pooled", logprobs=True),
    TraceSpec(score_every=1, head="steps", features_at=(7,)),
    TraceSpec(score_every=1, head="whole", live=True),
    TraceSpec(score_after=(3,), score_finish=True, head="pooled"),
    TraceSpec(logprobs=True, features_at=(5, 11)),
    TraceSpec(logprobs=True, confidence=True, score_finish=True, features_every=10, head="whole"),
    TraceSpec(confidence_window=4, self_certainty=True),
    TraceSpec(size=6, rules=(KeepShare(6, 0.5), Threshold(15, 0.2)), head="pooled"),
    TraceSpec(size=6, rules=(Budget(5, 150, 30),)),
    # Windows shorter and longer than a chunk, two of them, and one beside a score.
    TraceSpec(size=6, rules=(ConfidenceFloor(2, 0.5, 3),)),
    TraceSpec(size=6, rules=(ConfidenceFloor(3, 0.5, 20),), confidence=True, self_certainty=True),
    TraceSpec(size=6, rules=(ConfidenceFloor(2, 0.5, 8), ConfidenceFloor(2, 0.9, 5))),
    TraceSpec(size=6, rules=(ConfidenceFloor(2, 0.7, 8), KeepShare(12, 0.5)), head="whole"),
)
STEPS = 90


@dataclass(frozen=True)
class Step:
    """What a step brings: the new tokens of each request, who ends with it, and what was read of the rows."""

    tokens: Mapping[str, Sequence[int]]
    ended: frozenset[str]
    index: Mapping[str, int]
    logprobs: Mapping[str, np.ndarray[Any, Any]]
    signals: Signals

    def outputs(self) -> dict[int, EngineCoreOutputs]:
        """As vLLM's scheduler makes them, for two clients."""
        groups = {0: EngineCoreOutputs(), 1: EngineCoreOutputs()}
        for i, (key, tokens) in enumerate(self.tokens.items()):
            found = self.logprobs.get(key)
            output = EngineCoreOutput(
                request_id=key,
                new_token_ids=list(tokens),
                finish_reason=FinishReason.LENGTH if key in self.ended else None,
                new_logprobs=None if found is None else LogprobsLists(found, found, found[:, 0]),
            )
            groups[i % 2].outputs.append(output)
        return groups


class Observer:
    """The scheduler's part that takes rows in, without vLLM's."""

    def __init__(self, *, coasts: bool) -> None:
        scheduler: Any = object.__new__(QualityHeadScheduler)
        scheduler._monitor, scheduler._coasting, scheduler._refused = Monitor(), Coasting(), {}
        scheduler._export, scheduler._serves = (lambda log: log), False
        self.scheduler, self.one_by_one = scheduler, 0
        if not coasts:
            scheduler._coasting.put = lambda key, log: None
        take_in = scheduler._take_in

        def count(*args: Any) -> Any:
            self.one_by_one += 1
            return take_in(*args)

        scheduler._take_in = count

    def add(self, key: str, spec: TraceSpec) -> None:
        self.scheduler._monitor.add(key, spec)

    def observe(self, step: Step) -> list[Any]:
        """What is told of the step's requests, and the logs of those that end with it."""
        outputs = step.outputs()
        result = SimpleNamespace(arrol_signals=step.signals, req_id_to_index=step.index)
        self.scheduler._observe(outputs, result)
        told = []
        for output in (output for group in outputs.values() for output in group.outputs):
            told.append((output.request_id, output.new_logprobs is None, output.kv_transfer_params is None))
        for key in sorted(step.ended):
            told.append(self.take(key))
        for key in self.scheduler._monitor.take_verdicts():
            told.append(self.take(key))
        return told

    def take(self, key: str) -> list[Any]:
        """All that is in a log, as it leaves."""
        self.scheduler._coasting.land(key)
        log = self.scheduler._monitor.logs[key]
        self.scheduler._drop(key)
        return [key, *read(log)]


def read(log: TraceLog) -> Iterator[Any]:
    yield from (log.length, log.last_token, log.verdict, log.confidence.tobytes(), log.logprobs.tobytes())
    yield repr(log.scores), log.features
    yield repr((log.weight, log.value, log.steps, log.probability, log.certainty))


def steps_of(keys: list[str], held: Any, *, rng: random.Random, speculates: bool) -> Step:
    """A step of some of the requests, in the scheduler's order, and in the runner's another one."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    running = [key for key in keys if rng.random() < (0.05 if held(key) else 0.9)]
    tokens = {
        key: [rng.randrange(5) for _ in range(rng.choice((0, 1, 1, 2, 4)) if speculates else 1)] for key in running
    }
    order = rng.sample(running, len(running))
    rows = [5 if speculates else 1 for _ in order]
    firsts = np.cumsum([0, *rows[:-1]], dtype=np.int32)
    table = numbers.gamma(2.0, 2.0, (sum(kind.width for kind in HEADS.values()) + 2, sum(rows)))
    table[:, numbers.random(sum(rows)) < 0.002] = rng.choice((np.nan, np.inf))
    found = {key: numbers.normal(size=(len(tokens[key]), 1)).astype(np.float32) for key in running}
    features = numbers.normal(size=(sum(rows), 2)).astype(np.float32)
    return Step(
        tokens=tokens,
        ended=frozenset(key for key in running if tokens[key] and rng.random() < 0.01),
        index={key: i for i, key in enumerate(order)},
        logprobs=found,
        signals=Signals(
            table.astype(np.float32),
            heads=HEADS,
            confidence=True,
            self_certainty=True,
            firsts=firsts if speculates else None,
            features=features,
            kept=dict(zip(order, firsts.tolist(), strict=True)),
        ),
    )


@pytest.mark.parametrize("speculates", [False, True], ids=["one_token", "drafts"])
@pytest.mark.parametrize("seed", range(3))
def test_logs_and_verdicts_are_those_of_traces_that_are_looked_at_row_by_row(
    monkeypatch: pytest.MonkeyPatch, seed: int, speculates: bool
) -> None:
    monkeypatch.setattr(coasting, "CHUNK", 8)
    rng = random.Random(seed)
    ours, plain = Observer(coasts=True), Observer(coasts=False)
    names = itertools.count()
    rows = verdicts = 0
    for step in range(STEPS):
        if step % 30 == 0:  # others come while the first are written
            for spec in SPECS:
                group = f"g{next(names)}"
                for key in [f"r{next(names)}" for _ in range(6)]:
                    for observer in (ours, plain):
                        observer.add(key, replace(spec, group=group))
        monitor = plain.scheduler._monitor
        news = steps_of(list(monitor.logs), monitor.is_held, rng=rng, speculates=speculates)
        expected = plain.observe(news)
        assert ours.observe(news) == expected
        rows += len(news.tokens)
        verdicts += sum(len(told) > 3 and told[3] is not None for told in expected)
    for key in list(plain.scheduler._monitor.logs):
        assert ours.take(key) == plain.take(key)
    assert ours.scheduler._refused == plain.scheduler._refused == {}
    assert verdicts >= 10
    assert plain.one_by_one == rows
    assert ours.one_by_one < 0.7 * rows
    assert len(ours.scheduler._coasting) == 0


@pytest.mark.parametrize("seed", range(3))
def test_rows_put_aside_while_nothing_changes_are_taken_in_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(coasting, "CHUNK", 8)
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    heads = {name: kind for name, kind in HEADS.items() if not kind.pool_after}
    ours, plain = Observer(coasts=True), Observer(coasts=False)
    specs = (
        TraceSpec(score_at=(4, 30), head="pooled"),
        TraceSpec(score_every=1, score_finish=True, confidence=True, head="whole"),
        TraceSpec(score_every=1, self_certainty=True),
        TraceSpec(score_every=7, live=True, head="whole"),
        TraceSpec(score_at=(16,), head="pooled", confidence=True),
    )
    for i, spec in enumerate(specs):
        for observer in (ours, plain):
            for j in range(3):
                observer.add(f"{i}-{j}", spec)
    aside = 0
    for _ in range(60):
        keys = list(plain.scheduler._monitor.logs)
        table = numbers.normal(size=(sum(kind.width for kind in heads.values()) + 2, len(keys)))
        step = Step(
            tokens={key: [rng.randrange(5)] for key in keys},
            ended=frozenset(key for key in keys if rng.random() < 0.01),
            index={key: len(keys) - 1 - i for i, key in enumerate(keys)},
            logprobs={},
            signals=Signals(table.astype(np.float32), heads=heads, confidence=True, self_certainty=True),
        )
        assert without_last_tokens(ours.observe(step)) == without_last_tokens(plain.observe(step))
        steady = ours.scheduler._coasting._steady
        aside += steady is not None and bool(steady.aside)
    assert aside > 10
    left = list(plain.scheduler._monitor.logs)
    found, expected = ([observer.take(key) for key in left] for observer in (ours, plain))
    assert without_last_tokens(found) == without_last_tokens(expected)


def without_last_tokens(told: list[Any]) -> list[Any]:
    """Only heads of steps ask for them; without any they are not noted."""
    return [[*log[:2], *log[3:]] if isinstance(log, list) else log for log in told]


def rows_of(keys: str, values: Sequence[float]) -> Signals:
    """Rows of a head that pools, each of weight 1."""
    return Signals(np.array([[1.0] * len(keys), values], np.float32), heads={"pooled": HEADS["whole"]})


def step_of(keys: str, signals: Signals) -> Step:
    return Step({key: [7] for key in keys}, frozenset(), {key: i for i, key in enumerate(keys)}, {}, signals)


@pytest.fixture
def watching() -> Observer:
    """Three traces that coast after their first row."""
    observer = Observer(coasts=True)
    for key in "abc":
        observer.add(key, TraceSpec(score_at=(100,), head="pooled"))
    observer.observe(step_of("abc", rows_of("abc", [1.0, 2.0, 3.0])))
    assert len(observer.scheduler._coasting) == 3
    return observer


def test_a_request_whose_row_is_missing_is_refused_and_its_neighbours_go_on(watching: Observer) -> None:
    watching.observe(step_of("acb", rows_of("ac", [3.0, 5.0])))
    assert watching.scheduler._refused.keys() == {"b"}
    watching.observe(step_of("ac", rows_of("ac", [5.0, 7.0])))
    logs = watching.scheduler._monitor.logs
    assert [watching.take(key)[1] for key in "ac"] == [3, 3]
    assert logs.keys() == {"b"}


def test_a_request_that_the_step_does_not_know_is_refused_and_its_neighbours_go_on(watching: Observer) -> None:
    step = step_of("abc", rows_of("abc", [1.0, 2.0, 3.0]))
    watching.observe(replace(step, index={"a": 0, "c": 2}))
    assert watching.scheduler._refused.keys() == {"b"}
    (a, c) = (watching.take(key)[-1] for key in "ac")
    assert (a, c) == (repr((2.0, 2.0, 0, 0.0, 0.0)), repr((2.0, 6.0, 0, 0.0, 0.0)))


def test_traces_that_need_what_the_worker_did_not_return_are_told(watching: Observer) -> None:
    watching.observe(step_of("abc", Signals(error="the worker failed")))
    assert {refusal.reason for refusal in watching.scheduler._refused.values()} == {"the worker failed"}


def test_rows_are_found_when_the_runner_changes_their_order(watching: Observer) -> None:
    watching.observe(step_of("abc", rows_of("abc", [1.0, 2.0, 3.0])))
    step = step_of("abc", rows_of("cba", [3.0, 2.0, 1.0]))
    watching.observe(replace(step, index={"c": 0, "b": 1, "a": 2}))
    assert [watching.take(key)[-1] for key in "abc"] == [repr((3.0, 3.0 * i, 0, 0.0, 0.0)) for i in (1, 2, 3)]


def test_the_slots_of_traces_that_have_ended_are_given_to_others(watching: Observer) -> None:
    for i in range(200):
        watching.add(f"r{i}", TraceSpec(score_at=(100,), head="pooled"))
        key = f"r{i}"
        watching.observe(Step({key: [7]}, frozenset(), {key: 0}, {}, rows_of("r", [1.0])))
        watching.take(key)
    assert len(watching.scheduler._coasting._windows) == 64
    assert len(watching.scheduler._coasting) == 3


def test_a_window_has_what_a_trace_said_before_it_coasted() -> None:
    observer = Observer(coasts=True)
    rule = ConfidenceFloor(warmup=1, keep=0.5, window=3)
    for key in "ab":
        observer.add(key, TraceSpec("g", 2, rules=(rule,)))

    def observe(key: str, value: float, *, ends: bool = False) -> list[Any]:
        signals = Signals(np.array([[value]], np.float32), confidence=True)
        step = Step({key: [7]}, frozenset(key if ends else ""), {key: 0}, {}, signals)
        return observer.observe(step)

    for value in (6.0, 6.0, 3.0):
        observe("a", value)
    observe("a", 9.0, ends=True)  # windows of 5 and 6: the floor is 5
    for value in (9.0, 4.0, 3.0, 8.0):  # of 16/3 and 5
        assert len(observe("b", value)) == 1
    assert observer.one_by_one == 3  # a's first and last row, and b's first
    (_, told) = observe("b", 3.0)  # of 14/3
    assert told[:2] == ["b", 5]
    assert told[3].detail == "confidence 4.667 of the last 3 tokens is below 5.000"
