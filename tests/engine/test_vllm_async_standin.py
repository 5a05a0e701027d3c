"""Asynchronous scheduling and runner V2: the real scheduler, worker and engine core, a stand-in runner."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from arrol_tts.stopping import KeepShare, Threshold, TraceSpec
from tests.engine.standin import StandinEngine, confidence_of, score_of

PROMPT = range(9)
WATCHED = TraceSpec(score_at=(1, 7, 20), score_finish=True, confidence=True)


@pytest.fixture(autouse=True)
def _one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.v1.worker.gpu_worker.get_pp_group", lambda: SimpleNamespace(is_first_rank=True))


both_runners = pytest.mark.parametrize("v2", [True, False], ids=["runner_v2", "runner_v1"])


def confidences(log: dict[str, str]) -> list[float]:
    import base64

    import numpy as np

    return np.frombuffer(base64.b64decode(log["confidence"]), dtype=np.float32).tolist()


@both_runners
def test_scores_that_arrive_a_step_late_belong_to_their_positions_with_a_standin_runner(v2: bool) -> None:
    engine = StandinEngine(v2=v2, slots=4)
    lengths = {f"r{i}": 5 + 7 * i for i in range(6)}
    for name, length in lengths.items():
        engine.submit(name, range(5 + length), length, WATCHED)
    ended = engine.run()
    assert engine.most_batches == 2
    for name, length in lengths.items():
        positions = [k for k in (1, 7, 20, length - 1) if k < length]
        assert ended[name].log["scores"] == [
            (k, pytest.approx(score_of(name, k), abs=1e-6)) for k in dict.fromkeys(sorted(positions))
        ]
        expected = [confidence_of(name, k) for k in range(length)]
        assert confidences(ended[name].log) == pytest.approx(expected, abs=1e-6)


@both_runners
def test_a_trace_is_pruned_while_its_next_token_is_in_flight_with_a_standin_runner(v2: bool) -> None:
    engine = StandinEngine(v2=v2)
    spec = replace(WATCHED, rules=(Threshold(7, 0.5),))
    names = [f"r{i}" for i in range(8)]
    for name in names:
        engine.submit(name, PROMPT, 30, spec)
    ended = engine.run()
    low = {name for name in names if score_of(name, 7) < 0.5}
    assert 0 < len(low) < 8
    for name in names:
        assert (ended[name].stop_reason == "pruned") is (name in low)
        assert len(ended[name].tokens) == (8 if name in low else 30)
        # The token in flight was sampled, and is dropped.
        assert engine.runner.sampled[name] == (9 if name in low else 30)


@both_runners
def test_the_blocks_of_a_pruned_trace_are_free_when_its_verdict_is_out_with_a_standin_runner(v2: bool) -> None:
    engine = StandinEngine(v2=v2)
    name = next(f"r{i}" for i in range(99) if score_of(f"r{i}", 7) < 0.5)
    engine.submit(name, PROMPT, 30, replace(WATCHED, rules=(Threshold(7, 0.5),)))
    while not engine.ended:
        assert engine.busy
        engine.step()
    assert engine.ended[name].stop_reason == "pruned"
    assert engine.busy, "its token in flight has not come back yet"
    assert engine.free_blocks == engine.blocks
    engine.run()


@both_runners
@pytest.mark.parametrize(("slots", "blocks"), [(16, 400), (5, 400), (16, 30), (5, 30)])
def test_groups_keep_their_best_half_with_a_standin_runner(v2: bool, slots: int, blocks: int) -> None:
    engine = StandinEngine(v2=v2, slots=slots, blocks=blocks, budget=24)
    groups = [[f"g{g}-{i}" for i in range(4)] for g in range(4)]
    for g, names in enumerate(groups):
        for name in names:
            engine.submit(name, range(g, g + 9), 24, TraceSpec(group=f"g{g}", size=4, rules=(KeepShare(7, 0.5),)))
    ended = engine.run()
    assert engine.runner.most_held <= slots
    for names in groups:
        best = sorted(names, key=lambda name: score_of(name, 7), reverse=True)[:2]
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
def test_preempted_requests_are_scored_as_if_nothing_had_happened_with_a_standin_runner(v2: bool) -> None:
    engine = StandinEngine(v2=v2, blocks=20, budget=16)
    names = [f"r{i}" for i in range(6)]
    for i, name in enumerate(names):
        engine.submit(name, range(i, i + 9), 40, WATCHED)
    ended = engine.run()
    assert engine.runner.preemptions >= 4
    for name in names:
        assert len(ended[name].tokens) == 40
        assert [k for k, _ in ended[name].log["scores"]] == [1, 7, 20, 39]
        assert [s for _, s in ended[name].log["scores"]] == pytest.approx(
            [score_of(name, k) for k in (1, 7, 20, 39)], abs=1e-6
        )
        assert len(confidences(ended[name].log)) == 40


@both_runners
def test_aborts_while_others_wait_with_a_standin_runner(v2: bool) -> None:
    engine = StandinEngine(v2=v2)
    names = [f"r{i}" for i in range(4)]
    for name in names:
        length = 24 if name != "r3" else 200  # too slow a prompt: the other three wait for it
        engine.submit(
            name,
            range(9 if name != "r3" else 200),
            min(length, 24),
            TraceSpec(group="g", size=4, rules=(KeepShare(7, 0.5),)),
        )
    engine.scheduler.max_num_scheduled_tokens = 36

    def abort_the_last(step: int) -> None:
        waiting = [name for name in names[:3] if engine.scheduler._monitor.is_held(name)]
        if len(waiting) == 3:
            engine.abort("r3")

    ended = engine.run(between=abort_the_last)
    assert sorted(ended) == names[:3]
    worst = min(names[:3], key=lambda name: score_of(name, 7))
    assert [name for name in ended if ended[name].stop_reason == "pruned"] == [worst]


@both_runners
@pytest.mark.parametrize("seed", range(30))
def test_any_mix_of_rules_sizes_and_aborts_ends_with_a_standin_runner(v2: bool, seed: int) -> None:
    rng = random.Random(seed)
    engine = StandinEngine(
        v2=v2, slots=rng.randint(1, 8), blocks=rng.randint(20, 80), budget=rng.choice([8, 24, 64])
    )
    names = []
    for group in range(rng.randint(1, 4)):
        size = rng.randint(1, 10)
        at = rng.randint(1, 30)
        rules = rng.choice([(), (KeepShare(at, rng.random()),), (Threshold(at, rng.random()), KeepShare(9, 0.6))])
        spec = replace(WATCHED, group=f"g{group}", size=size, rules=rules)
        prompt = range(group, group + rng.randint(1, 24))
        for i in range(size):
            names.append(f"g{group}-{i}")
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
            assert score == pytest.approx(score_of(name, position), abs=1e-6)

