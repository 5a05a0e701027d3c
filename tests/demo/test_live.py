"""Runs on the real engine: frames, comparison, stop, cancellation."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts.errors import EngineError, ServerError
from arrol_tts.head_config import QualityHeadConfig, read_head_config
from arrol_tts.pocket import POCKET_HEAD
from arrol_tts.voter import WeightedVoter
from demo.choices import Ask, Choices
from demo.frames import Frame, Stop, play
from demo.live import LiveRunner
from demo.recording import Recordings
from tests.demo.conftest import ANSWER, QUESTION, hold

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'arrol[cpu]'")


def frames(runner: LiveRunner, *choices: Choices, question: str = QUESTION) -> list[Frame]:
    async def collect() -> list[Frame]:
        return [frame async for frame in runner.run(Ask(question, choices), Stop())]

    return asyncio.run(collect())


def idle(voter: WeightedVoter, seconds: float = 30) -> bool:
    """Whether the engine has no unfinished request left, within some time."""
    until = time.monotonic() + seconds
    engine: Any = voter.engine
    while time.monotonic() < until:
        if not engine._loop.call(lambda core: core.has_unfinished_requests()):
            return True
        time.sleep(0.05)
    return False


def test_traces_grow_and_are_pruned_before_the_eyes(
    runner: LiveRunner, vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (grown,) = hold(monkeypatch, vllm_engine, 20)
    shown = []

    async def watch() -> None:
        async for frame in runner.run(Ask(QUESTION, (Choices(n=16),)), Stop()):
            shown.append(run := frame["runs"][0])
            if run["counts"]["writing"] == 16 and run["tokens"] > 0:
                grown.set()

    asyncio.run(watch())
    assert grown.is_set()
    assert shown[-1]["counts"] == {"writing": 0, "finished": 8, "pruned": 8, "cancelled": 0}
    pruned = [trace for trace in shown[-1]["traces"] if trace["status"] == "pruned"]
    assert all(trace["tokens"] == 33 and "token 32" in trace["why"] for trace in pruned)


def test_frames_are_numbered_without_gaps_and_only_the_last_has_an_id(runner: LiveRunner) -> None:
    found = frames(runner, Choices(n=8))
    assert [frame["update"] for frame in found] == list(range(len(found)))
    assert [bool(frame["id"]) for frame in found] == [False] * (len(found) - 1) + [True]


def test_the_last_tally_is_the_librarys_vote_on_the_recorded_traces(runner: LiveRunner) -> None:
    last = frames(runner, Choices(n=16))[-1]
    recording = runner.recordings.get(last["id"])
    assert recording is not None
    run = recording.runs[0]
    for tally, method in zip(last["runs"][0]["tally"], ("majority", "deepconf", "quality"), strict=True):
        result = runner.voter.vote(run.traces, method)
        assert (tally["answer"], tally["right"]) == (result.answer, result.answer == ANSWER)
        assert [row["votes"] for row in tally["rows"]] == [row.votes for row in result.table[:6]]


def test_compared_runs_share_the_samples_until_one_is_pruned(runner: LiveRunner) -> None:
    last = frames(runner, Choices(n=8), Choices(n=8, rule="none"))[-1]
    ours, plain = (run["traces"] for run in last["runs"])
    assert [trace["status"] for trace in plain] == ["stop"] * 8
    kept = [(a["text"], b["text"]) for a, b in zip(ours, plain, strict=True) if a["status"] == "stop"]
    cut = [(a["text"], b["text"]) for a, b in zip(ours, plain, strict=True) if a["status"] == "pruned"]
    assert len(kept) == len(cut) == 4
    assert all(a == b for a, b in kept)
    assert all(b.startswith(a) for a, b in cut)


def test_a_seed_gives_the_same_answers_again(runner: LiveRunner) -> None:
    first, second = (frames(runner, Choices(n=8, seed=5))[-1]["runs"][0]["traces"] for _ in range(2))
    assert [trace["answer"] for trace in first] == [trace["answer"] for trace in second]


def test_what_the_page_does_not_ask_for_is_the_heads_sampling(vllm_engine: VLLMEngine) -> None:
    config = read_head_config(POCKET_HEAD)
    config.sampling["top_p"] = 1e-6  # only the likeliest token is left
    runner = LiveRunner(WeightedVoter(vllm_engine, config=config), Recordings(), max_tokens=64, score_every=8)
    runner.ready.set()
    traces = frames(runner, Choices(n=4, rule="none"))[-1]["runs"][0]["traces"]
    assert len({trace["text"] for trace in traces}) == 1


@pytest.mark.parametrize(("own", "window"), [({}, 25), ({"deepconf": {"window": 8}}, 8)])
def test_the_deepconf_rule_has_a_window_that_can_stop_traces(own: dict[str, dict[str, int]], window: int) -> None:
    voter = WeightedVoter(config=QualityHeadConfig("m", 4, voting=own))
    assert LiveRunner(voter, Recordings(), max_tokens=200, score_every=8).window == window


@pytest.mark.parametrize("rule", ["bar", "deepconf", "none"])
def test_every_stopping_rule_runs_to_its_end(runner: LiveRunner, rule: str) -> None:
    run = frames(runner, Choices(n=8, rule=rule, keep=0.4))[-1]["runs"][0]
    assert run["phase"] == "done"
    assert run["counts"]["finished"] + run["counts"]["pruned"] == 8


def test_consensus_cancels_the_rest_and_says_so(runner: LiveRunner) -> None:
    run = frames(runner, Choices(n=48, rule="none", consensus=0.5), question="2+3+4+5-6+7-8")[-1]["runs"][0]
    assert run["counts"]["cancelled"] > 0
    assert "cancelled" in run["note"]


def test_stop_ends_the_run_with_what_there_is(
    runner: LiveRunner, vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, vllm_engine, 10_000)  # it takes its time for some seconds

    async def press() -> Frame:
        stop = Stop()
        async for frame in runner.run(Ask(QUESTION, (Choices(n=48, rule="none"),)), stop):
            stop.pressed = stop.pressed or frame["runs"][0]["tokens"] > 0
        return frame

    last = asyncio.run(press())
    assert last["runs"][0]["phase"] == "stopped"
    assert last["runs"][0]["counts"]["cancelled"] > 0
    assert idle(runner.voter)


def test_a_reader_who_leaves_cancels_the_run(runner: LiveRunner) -> None:
    async def leave() -> None:
        running = runner.run(Ask(QUESTION, (Choices(n=48, rule="none"),)), Stop())
        async for frame in running:
            if frame["runs"][0]["tokens"]:
                break
        await running.aclose()

    asyncio.run(leave())
    assert idle(runner.voter)


@pytest.mark.parametrize("question", ["<script>alert(1)</script>", "what is 2+2?"])
def test_what_the_pocket_model_cannot_answer_is_refused(runner: LiveRunner, question: str) -> None:
    with pytest.raises(ValueError, match="not a pocket question"):
        frames(runner, Choices(n=2), question=question)


def test_a_model_that_does_not_load_says_why() -> None:
    voter = WeightedVoter(config=read_head_config(POCKET_HEAD))
    broken = LiveRunner(voter, Recordings(), max_tokens=64, score_every=8)
    with pytest.raises(ValueError, match="no language model"):
        broken.warm_up()
    with pytest.raises(EngineError, match="could not be loaded"):
        frames(broken, Choices(n=2))


def test_a_server_that_is_down_is_asked_again(vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_head_config(POCKET_HEAD)
    voter = WeightedVoter(config=config)
    lost = LiveRunner(voter, Recordings(), max_tokens=64, score_every=8)

    def down(_: object) -> VLLMEngine:
        raise ServerError("no server is left")

    monkeypatch.setattr(WeightedVoter, "engine", property(down))
    lost.warm_up()
    with pytest.raises(ServerError, match="no server is left"):
        frames(lost, Choices(n=2))
    monkeypatch.setattr(WeightedVoter, "engine", property(lambda _: vllm_engine))
    assert frames(lost, Choices(n=2, at=16))[-1]["runs"][0]["phase"] == "done"


def test_a_run_can_be_played_again(runner: LiveRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.frames.UPDATE_SECONDS", 0)
    last = frames(runner, Choices(n=4))[-1]
    recording = runner.recordings.get(last["id"])
    assert recording is not None

    async def collect() -> list[tuple[int, Frame]]:
        return [item async for item in play(recording, runner.voter, Stop())]

    played = asyncio.run(collect())
    assert played[0][0] == 0
    assert played[0][1]["runs"][0]["tokens"] == 0
    assert played[-1][1]["runs"][0]["tally"] == last["runs"][0]["tally"]
