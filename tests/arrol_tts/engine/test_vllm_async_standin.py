"""What takes thousands of steps: the real scheduler, worker and engine core, a stand-in runner of either kind."""

from __future__ import annotations

import base64
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from arrol_tts.engine.signals import HeadReader
from arrol_tts.engine.vllm_plugin import check_config
from arrol_tts.engine.vllm_plugin.scheduler import QualityHeadAsyncScheduler, QualityHeadScheduler
from arrol_tts.errors import EngineError
from arrol_tts.stopping import Budget, ConfidenceFloor, KeepShare, Threshold, TraceSpec
from tests.arrol_tts.engine import standin
from tests.arrol_tts.engine.standin import (
    POOLED,
    SCORES,
    StandinEngine,
    pooled_head,
    pooled_score_of,
    score_of,
)

PROMPT = range(9)
WATCHED = TraceSpec(score_at=(1, 7, 20), score_finish=True, confidence=True)


@pytest.fixture(autouse=True)
def _one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.v1.worker.gpu_worker.get_pp_group", lambda: SimpleNamespace(is_first_rank=True))


both_runners = pytest.mark.parametrize("v2", [True, False], ids=["runner_v2", "runner_v1"])
both_heads = pytest.mark.parametrize("head", SCORES, ids=["last", "pooled"])


def confidences(log: dict[str, str]) -> list[float]:
    return np.frombuffer(base64.b64decode(log["confidence"]), dtype=np.float32).tolist()


@both_runners
@pytest.mark.parametrize("before", [POOLED, ""], ids=["pooled", "last"])
def test_a_head_pushed_while_a_trace_is_written_adds_to_what_the_one_before_has_read_with_a_standin_runner(
    v2: bool, before: str
) -> None:
    engine = StandinEngine(v2=v2, asynchronous=False)
    engine.submit("r", PROMPT, 12, TraceSpec(score_every=1, head=before))
    pushed = pooled_head(stride=4)
    with torch.no_grad():
        pushed.outer.bias.copy_(torch.tensor([1.0, 0.5]))

    def push(step: int) -> None:
        if step == 6:  # the row at position 6 is the first that it reads
            engine.worker.arrol_heads[before] = HeadReader(pushed)

    scores = dict(engine.run(between=push)["r"].log["scores"])
    states = torch.tensor([[score_of("r", k)] for k in range(12)])
    with torch.inference_mode():
        old, new = pooled_head().read(states), pushed.read(states)
    # Without anything read before, the first row that comes counts, though no multiple of the stride.
    rows = [(old, 0), (old, 3), (new, 8)] if before else [(new, 6), (new, 8)]
    weight = sum(head[0][k] for head, k in rows)
    value = sum(head[0][k] * head[1][k] for head, k in rows)
    assert scores[5] == pytest.approx(SCORES[before]("r", 5), abs=1e-6)
    assert scores[11] == pytest.approx(torch.sigmoid(torch.as_tensor(value / weight)).item(), abs=1e-6)


@both_runners
def test_a_row_that_is_no_number_leaves_a_pooled_trace_without_scores_and_prunes_it_with_a_standin_runner(
    v2: bool,
) -> None:
    broken = torch.tensor(score_of("r1", 3))

    class Broken(HeadReader):
        def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().__call__(hidden.where(hidden != broken, math.inf))

    engine = StandinEngine(v2=v2)
    engine.worker.arrol_heads[POOLED] = Broken(pooled_head())
    spec = TraceSpec(group="g", size=4, head=POOLED, score_at=(1, 2, 7), rules=(KeepShare(7, 0.75),))
    for i in range(4):
        engine.submit(f"r{i}", PROMPT, 24, spec)
    ended = engine.run()
    assert {name for name, end in ended.items() if end.stop_reason == "pruned"} == {"r1"}
    assert ended["r1"].log["scores"] == [
        *((k, pytest.approx(pooled_score_of("r1", k), abs=1e-6)) for k in (1, 2)),
        (7, None),
    ]
    assert ended["r1"].log["pruned"]["score"] is None


@both_runners
@pytest.mark.parametrize(("slots", "blocks"), [(16, 400), (5, 400), (16, 30), (5, 30)])
def test_groups_keep_their_best_half_with_a_standin_runner(v2: bool, slots: int, blocks: int) -> None:
    engine = StandinEngine(v2=v2, slots=slots, blocks=blocks, budget=24)
    groups = [[f"g{g}-{i}" for i in range(4)] for g in range(4)]
    heads = ("", POOLED, "", POOLED)
    for g, names in enumerate(groups):
        spec = TraceSpec(group=f"g{g}", size=4, head=heads[g], rules=(KeepShare(7, 0.5),))
        for name in names:
            engine.submit(name, range(g, g + 9), 24, spec)
    ended = engine.run()
    assert engine.runner.most_held <= slots
    for head, names in zip(heads, groups, strict=True):
        best = sorted(names, key=lambda name: SCORES[head](name, 7), reverse=True)[:2]
        assert {name for name in names if ended[name].stop_reason != "pruned"} == set(best)
        # One that waits for its group may have had a token in flight when it began to wait.
        assert all(len(ended[name].tokens) in (8, 9) for name in set(names) - set(best))
        assert all(len(ended[name].tokens) == 24 for name in best)


def test_waiting_requests_keep_their_slots_with_a_standin_runner_v2() -> None:
    # 6 of a group of 12 fill all slots and wait; the other 6 could never come.
    engine = StandinEngine(v2=True, slots=6)
    for i in range(12):
        engine.submit(f"r{i}", PROMPT, 24, TraceSpec(group="g", size=12, rules=(KeepShare(7, 0.25),)))
    ended = engine.run()
    assert engine.runner.most_held == 6
    kept = [name for name, end in ended.items() if end.stop_reason != "pruned"]
    assert 1 <= len(kept) < 12
    assert max((score_of(name, 7), name) for name in ended)[1] in kept


def test_waiting_requests_make_room_for_others_with_a_standin_runner_v1() -> None:
    engine = StandinEngine(v2=False, slots=6)
    names = [f"r{i}" for i in range(12)]
    for name in names:
        engine.submit(name, PROMPT, 24, TraceSpec(group="g", size=12, rules=(KeepShare(7, 0.25),)))
    ended = engine.run()
    assert engine.runner.most_held == 6
    best = sorted(names, key=lambda name: score_of(name, 7), reverse=True)[:3]
    assert {name for name in names if ended[name].stop_reason != "pruned"} == set(best)


@both_runners
@pytest.mark.parametrize("asynchronous", [True, False], ids=["asynchronous", "synchronous"])
@pytest.mark.parametrize("end", ["abort", "patience"])
def test_a_group_whose_last_member_never_comes_prunes_the_others_with_a_standin_runner(
    monkeypatch: pytest.MonkeyPatch, v2: bool, asynchronous: bool, end: str
) -> None:
    engine = StandinEngine(v2=v2, asynchronous=asynchronous)
    spec = TraceSpec(group="g", size=4, rules=(KeepShare(7, 0.5),))
    for name in ("r0", "r1", "r2"):
        engine.submit(name, PROMPT, 24, spec)
    # Keeps the engine busy, so that the group is not simply stuck.
    engine.submit("other", PROMPT, 200, spec if end == "abort" else None)

    def lose_the_last(step: int) -> None:
        if step == 5 and end == "abort":
            engine.abort("other")
            engine.submit("another", PROMPT, 100, None)
        if step == 30 and end == "patience":
            monkeypatch.setattr("arrol_tts.stopping.rules.base.PATIENCE_SECONDS", 0.0)

    ended = engine.run(between=lose_the_last)
    ranked = sorted(("r0", "r1", "r2"), key=lambda name: score_of(name, 7))
    assert ended[ranked[0]].stop_reason == "pruned"
    assert [len(ended[name].tokens) for name in ranked[1:]] == [24, 24]
    # Nothing more is computed for it once it waits.
    in_flight = 1 if asynchronous else 0
    assert len(ended[ranked[0]].tokens) <= 8 + in_flight
    assert engine.runner.sampled[ranked[0]] <= 8 + in_flight


@both_runners
def test_a_trace_pruned_by_one_rule_completes_the_group_of_another_with_a_standin_runner(v2: bool) -> None:
    # The third, whose prompt takes longest, falls to a threshold at 5 while the others wait at 9 for it.
    engine = StandinEngine(v2=v2, asynchronous=False, budget=24)
    names = sorted((f"r{i}" for i in range(9)), key=lambda name: score_of(name, 9))[-3:]
    low, first, second = names
    fall = TraceSpec(group="g", size=3, rules=(KeepShare(9, 0.34), Threshold(5, 1.0)))
    wait = TraceSpec(group="g", size=3, rules=(KeepShare(9, 0.34),))
    engine.submit(first, PROMPT, 24, wait)
    engine.submit(second, PROMPT, 24, wait)
    engine.submit(low, range(200), 24, fall)
    ended = engine.run()
    assert [ended[name].stop_reason for name in (low, first)] == ["pruned", "pruned"]
    assert [len(ended[name].tokens) for name in (low, first, second)] == [6, 10, 24]
    assert ended[first].step == ended[low].step


@both_runners
@pytest.mark.parametrize("seed", range(20))
def test_any_mix_of_rules_sizes_and_aborts_ends_with_a_standin_runner(v2: bool, seed: int) -> None:
    rng = random.Random(seed)
    engine = StandinEngine(
        v2=v2, slots=rng.randint(1, 8), blocks=rng.randint(20, 80), budget=rng.choice([8, 24, 64])
    )
    names, head_of = [], {}
    for group in range(rng.randint(1, 4)):
        size = rng.randint(1, 10)
        at = rng.randint(1, 30)
        rules = rng.choice(
            [
                (),
                (KeepShare(at, rng.random()),),
                (Threshold(at, rng.random()), KeepShare(9, 0.6)),
                (KeepShare(4, 0.7), KeepShare(12, 0.5)),
                (ConfidenceFloor(warmup=rng.randint(1, 4), keep=rng.random(), window=3),),
                (Budget(at=5, tokens=rng.randint(20, 200), length=20),),
                (ConfidenceFloor(warmup=2, keep=0.5, window=4), KeepShare(at, 0.5)),
            ]
        )
        head = ("", POOLED)[(seed + group) % 2]
        spec = replace(WATCHED, group=f"g{group}", size=size, rules=rules, head=head)
        prompt = range(group, group + rng.randint(1, 24))
        for i in range(size):
            names.append(f"g{group}-{i}")
            head_of[names[-1]] = head
            engine.submit(names[-1], prompt, rng.randint(1, 40), rng.choice([spec, spec, spec, None]))
    aborted = set()

    def abort_some(step: int) -> None:
        if rng.random() < 0.05:
            aborted.add(rng.choice(names))
            for name in aborted:
                engine.abort(name)

    ended = engine.run(between=abort_some)
    assert set(names) - aborted <= set(ended)
    for name, end in ended.items():
        for position, score in end.log.get("scores", ()):
            assert score == pytest.approx(SCORES[head_of[name]](name, position), abs=1e-6)


@both_runners
def test_a_group_larger_than_the_running_batch_is_decided_whole_with_a_standin_runner(v2: bool) -> None:
    engine = StandinEngine(v2=v2, slots=4)
    for i in range(10):
        engine.submit(f"r{i}", PROMPT, 20, TraceSpec("g", 10, score_at=(7,), rules=(KeepShare(7, 0.5),)))
    ended = engine.run()
    pruned = {name for name, end in ended.items() if end.stop_reason == "pruned"}
    best = sorted(ended, key=lambda name: score_of(name, 7), reverse=True)[:5]
    assert ended.keys() - pruned == set(best)
    assert all("the best 5 of 10" in ended[name].log["pruned"]["detail"] for name in pruned)


@both_runners
def test_traces_that_wait_for_a_floor_leave_the_batch_to_others_with_a_standin_runner(v2: bool) -> None:
    engine = StandinEngine(v2=v2, slots=4)
    for group in "ab":
        spec = TraceSpec(group, 8, rules=(ConfidenceFloor(warmup=2, keep=0.5, window=4),))
        for i in range(8):
            engine.submit(f"{group}{i}", PROMPT, 20, spec)
    for _ in range(12):
        engine.step()
    # Both groups warm up at once; a batch of 4 has no place for who would only wait.
    assert {name for name, count in engine.runner.sampled.items() if count} == {"a0", "a1", "b0", "b1"}
    assert len(engine.run()) == 16


@pytest.mark.parametrize(
    ("asynchronous", "kind"), [(True, QualityHeadAsyncScheduler), (False, QualityHeadScheduler)]
)
def test_the_scheduler_is_the_one_that_vllms_finished_configuration_calls_for(
    asynchronous: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type(StandinEngine(asynchronous=asynchronous).scheduler) is kind
    other = QualityHeadScheduler if asynchronous else QualityHeadAsyncScheduler
    monkeypatch.setattr(standin, "QualityHeadAutoScheduler", other)
    with pytest.raises(EngineError, match="name QualityHeadAutoScheduler, which does"):
        StandinEngine(asynchronous=asynchronous)


@pytest.mark.parametrize(
    ("parallel", "speculative", "words"),
    [
        ({"prefill_context_parallel_size": 2}, None, "leave prefill_context_parallel_size at 1"),
        ({}, {"enable_adaptive_verification": True}, "leave enable_adaptive_verification out"),
    ],
)
def test_what_would_make_rows_those_of_others_is_refused_at_the_start(
    parallel: dict[str, int], speculative: dict[str, bool] | None, words: str
) -> None:
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel),
        speculative_config=None if speculative is None else SimpleNamespace(**speculative),
    )
    with pytest.raises(EngineError, match=words):
        check_config(config)
