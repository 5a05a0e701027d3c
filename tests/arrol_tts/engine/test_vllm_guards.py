"""Whatever goes wrong inside the plug-in ends the requests that it concerns, and their neighbours go on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts.engine import signals
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.engine.stop_texts import Watched
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.errors import InputError
from arrol_tts.pocket import questions
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import KeepShare, Monitor, Threshold, TraceLog, TraceSpec
from arrol_tts.stopping.rules import keep_share, threshold

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")

from arrol_tts.engine.vllm_plugin.coasting import Coasting

TEXTS = [q.text for q in itertools.islice(questions("test"), 6)]
NEVER = "this is never written"
PAIR = TraceSpec(group="pair", size=2, score_at=(8,), stop=(NEVER,), rules=(KeepShare(8, 0.5),))
SPECS = {
    "victim": PAIR,
    "mate": PAIR,
    "other": TraceSpec(group="other", size=1, confidence=True, score_at=(8,), rules=(Threshold(8, 0.0),)),
    "live": TraceSpec(score_every=4, live=True),
    "stop": TraceSpec(stop=(NEVER,)),
    "plain": None,
}
"""Requests of one batch: two in a group, one by itself, and three that rules do not concern."""

WATCHED = {name for name, spec in SPECS.items() if spec is not None}
SIGNALLED = WATCHED - {"stop"}


@dataclass
class Ended:
    tokens: list[int]
    stop_reason: Any
    log: Any


@pytest.fixture
def run(vllm_engine: VLLMEngine) -> Iterator[Callable[[], dict[str, Ended]]]:
    """Runs the batch; the engine must have forgotten all of it afterwards."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    engine = vllm_engine._loop.engine
    scheduler: Any = engine.engine_core.engine_core.scheduler

    def submit(name: str) -> None:
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
        params.extra_args = None if (spec := SPECS[name]) is None else {CONFIG_KEY: spec.to_dict()}
        text = TEXTS[list(SPECS).index(name)]
        engine.add_request(name, tokens_input(encode_prompt(vllm_engine._tokenizer, text)), params)

    def work() -> dict[str, Ended]:
        ended: dict[str, Ended] = {}

        def step() -> None:
            for output in engine.step():
                if output.finished:
                    log = (output.kv_transfer_params or {}).get(CONFIG_KEY)
                    completion = output.outputs[0]
                    ended[output.request_id] = Ended(list(completion.token_ids), completion.stop_reason, log)

        for name in SPECS:
            if name != "mate":
                submit(name)
        step()
        step()
        submit("mate")  # for whom the victim waits
        until = time.monotonic() + 60
        while engine.has_unfinished_requests():
            assert time.monotonic() < until
            step()
        return ended

    yield work
    assert (scheduler.requests, scheduler.running, len(scheduler.waiting)) == ({}, [], 0)
    assert (scheduler._refused, scheduler._stops, scheduler._freed) == ({}, {}, set())
    assert (len(scheduler._coasting), "_update_request_with_output" in vars(scheduler)) == (0, False)
    monitor = scheduler._monitor
    assert (monitor.logs, monitor._groups, monitor._holding, monitor._failures) == ({}, {}, {}, {})


def internal(key: object) -> str:
    """The name that a request was submitted under; vLLM adds to it."""
    return str(key).partition("-")[0]


def failing(function: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    def inject(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            raise ZeroDivisionError("injected")
        return function(*args, **kwargs)

    return inject


def is_victim(_: object, key: object, *_args: object, **_kwargs: object) -> bool:
    return internal(key) == "victim"


def is_mate(_: object, key: object, *_args: object, **_kwargs: object) -> bool:
    return internal(key) == "mate"


def always(*_args: object, **_kwargs: object) -> bool:
    return True


def of_the_pair(log: TraceLog) -> bool:
    return log.spec.group == "pair"


HOOKS: dict[str, tuple[Any, str, Callable[..., bool], set[str]]] = {
    "a request comes": (Monitor, "add", is_victim, {"victim"}),
    "a rule gets a member": (keep_share._State, "join", is_victim, {"victim"}),
    "a row is taken in": (Monitor, "observe", is_victim, {"victim"}),
    "rows are added up": (Coasting, "advance", always, WATCHED),
    "a trace begins to coast": (Coasting, "put", is_victim, {"victim"}),
    "a trace coasts no more": (Coasting, "land", is_victim, {"victim"}),
    "a rule looks at a row": (keep_share._State, "observe", is_mate, {"victim", "mate"}),
    "a rule decides": (keep_share._State, "decide", always, {"victim", "mate"}),
    "a rule loses a member": (keep_share._State, "leave", always, {"mate"}),
    "another rule looks at a row": (threshold._State, "observe", always, {"other"}),
    "a group is let go": (Monitor, "release", always, WATCHED),
    "verdicts are asked for": (Monitor, "take_verdicts", always, WATCHED),
    "who waits is asked": (Monitor, "is_held", always, WATCHED),
    "news is reported": (TraceLog, "take_news", always, {"live"}),
    "a text is looked at": (Watched, "add", always, {"victim", "mate", "stop"}),
    "a score is read": (signals.HeadReading, "score", always, SIGNALLED),
    "the worker reads the states": (signals.HeadReader, "__call__", always, SIGNALLED),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_an_exception_in_a_hook_ends_whom_it_concerns_and_the_others_write_what_they_would(
    run: Callable[[], dict[str, Ended]], monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    expected = run()
    owner, name, when, concerned = HOOKS[hook]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), when))
    ended = run()
    monkeypatch.undo()
    assert ended.keys() == SPECS.keys()
    refused = {name for name, end in ended.items() if isinstance(end.log, dict)}
    assert refused == concerned
    for name in concerned:
        assert ended[name].stop_reason == "refused"
        assert "ZeroDivisionError: injected" in ended[name].log["error"]
        assert len(ended[name].tokens) < 24
    for name in SPECS.keys() - concerned:
        whole = expected[name] if expected[name].stop_reason is None or "mate" not in concerned else ended[name]
        assert ended[name].tokens == whole.tokens
    assert len(ended["plain"].tokens) == 24
    # The engine serves the next as if nothing had been.
    assert {name: end.tokens for name, end in run().items()} == {
        name: end.tokens for name, end in expected.items()
    }


@pytest.mark.parametrize("victim", ["victim", "mate"])
def test_a_log_that_cannot_leave_ends_its_own_request(
    run: Callable[[], dict[str, Ended]], vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    scheduler: Any = vllm_engine._loop.engine.engine_core.engine_core.scheduler
    expected = run()
    calls = itertools.count()
    # One of the pair is pruned and the other ends by itself: the log leaves at either end.
    first = 0 if (expected[victim].stop_reason == "pruned") else 1

    def export(log: TraceLog) -> TraceLog:
        if of_the_pair(log) and next(calls) == first:
            raise ZeroDivisionError("injected")
        return log

    monkeypatch.setattr(scheduler, "_export", export)
    ended = run()
    assert {name for name, end in ended.items() if isinstance(end.log, dict)} == {victim}
    assert "injected" in ended[victim].log["error"]
    for name in SPECS.keys() - {victim}:
        assert ended[name].tokens == expected[name].tokens


def test_a_refused_request_that_ends_in_its_first_step_is_told(vllm_engine: VLLMEngine) -> None:
    with pytest.raises(InputError, match="stop has"):
        TraceSpec.parse({"stop": ["\ud8001"]})
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    engine = vllm_engine._loop.engine
    params = SamplingParams(max_tokens=1, detokenize=False, extra_args={CONFIG_KEY: '{"stop": ["\\ud8001"]}'})
    engine.add_request("bad", tokens_input(encode_prompt(vllm_engine._tokenizer, TEXTS[0])), params)
    done: list[Any] = []
    while engine.has_unfinished_requests():
        done += engine.step()
    assert "lone surrogate" in done[-1].kv_transfer_params[CONFIG_KEY]["error"]


def test_an_error_of_one_call_is_not_the_next_ones(
    vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arrol_tts.engine.vllm_run import VLLMRun

    bad = vllm_engine.sample([Question("bad", TEXTS[0])], Sampling(n=2, max_tokens=60, min_tokens=40))
    monkeypatch.setattr(VLLMRun, "receive", failing(VLLMRun.receive, lambda run, _output: run is bad._run))
    good = vllm_engine.sample([Question("good", TEXTS[1])], Sampling(n=2, max_tokens=60))
    assert len(list(good)) == 2
    with pytest.raises(ZeroDivisionError, match="injected"):
        list(bad)


def test_confidences_that_are_not_finite_count_as_zero(
    vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from arrol_tts.engine.vllm_plugin import worker

    def infinite(logits: torch.Tensor, top_k: int) -> torch.Tensor:
        return torch.full((len(logits),), torch.inf)

    monkeypatch.setattr(worker, "token_confidence", infinite)
    traces = list(
        vllm_engine.sample([Question("q", TEXTS[0])], Sampling(n=2, max_tokens=9), TraceSpec(confidence_window=4))
    )
    assert [trace.meta["deepconf"]["lowest_window"] for trace in traces] == [0.0, 0.0]
