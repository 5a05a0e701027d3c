"""What only the vLLM engine has: the plug-in's scheduler and worker in unmodified vLLM."""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts.engine.request import Question, Sampling
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import KeepShare, TraceSpec

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from arrol_tts.trace import Trace

pytest.importorskip("vllm")

QUESTIONS = [Question(f"q{i}", q.text) for i, q in enumerate(itertools.islice(questions("test"), 6))]
SAMPLING = Sampling(n=8, max_tokens=256)
PRUNED = TraceSpec(score_at=(32,), score_finish=True, rules=(KeepShare(32, 0.5),))


def scheduler_of(engine: VLLMEngine) -> Any:
    """The scheduler of the in-process engine core."""
    return engine._loop.engine.engine_core.engine_core.scheduler


def free_blocks(engine: VLLMEngine) -> int:
    return int(scheduler_of(engine).kv_cache_manager.block_pool.get_num_free_blocks())


def submit(engine: VLLMEngine, extra_args: dict[str, Any] | None, request_id: str = "r", **params: Any) -> str:
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    prompt = encode_prompt(engine._tokenizer, QUESTIONS[0].text)
    settings = {"max_tokens": 60, "seed": 1, "detokenize": False} | params
    return str(
        engine._loop.engine.add_request(
            request_id, tokens_input(prompt), SamplingParams(**settings, extra_args=extra_args)
        )
    )


def drain(engine: VLLMEngine) -> dict[str, Any]:
    done: dict[str, Any] = {}
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if not engine._loop.engine.has_unfinished_requests():
            return done
        done |= {o.request_id: o for o in engine._loop.engine.step() if o.finished}
    raise AssertionError("the engine did not finish")


def test_the_kv_blocks_of_pruned_requests_are_free_in_the_step_of_the_verdict(
    vllm_engine: VLLMEngine,
) -> None:
    scheduler = scheduler_of(vllm_engine)
    steps = []
    update = scheduler.update_from_output

    def watch(*args: Any) -> Any:
        before = free_blocks(vllm_engine)
        outputs = update(*args)
        ended = [o for group in outputs.values() for o in group.outputs if o.stop_reason == "pruned"]
        steps.append((len(ended), free_blocks(vllm_engine) - before))
        assert not {o.request_id for o in ended} & set(scheduler.requests)
        return outputs

    scheduler.update_from_output = watch
    try:
        all_free = free_blocks(vllm_engine)
        traces = list(vllm_engine.sample(QUESTIONS[:1], SAMPLING, PRUNED))
    finally:
        del scheduler.update_from_output
    (step,) = [s for s in steps if s[0]]
    assert step[0] == sum(t.finish_reason == "pruned" for t in traces) == 4
    assert step[1] >= 4
    assert free_blocks(vllm_engine) == all_free


def test_fewer_slots_than_requests_still_prune_every_group_to_its_share(vllm_engine: VLLMEngine) -> None:
    # 6 groups of 8 in 24 slots: groups meet while others run, and none deadlocks.
    traces = list(vllm_engine.sample(QUESTIONS, SAMPLING, PRUNED))
    for question in QUESTIONS:
        group = [t for t in traces if t.question_id == question.id]
        assert sum(t.finish_reason == "pruned" for t in group) == 4
        assert all(t.num_tokens == 33 for t in group if t.finish_reason == "pruned")


def test_a_group_larger_than_the_running_batch_meets_too(vllm_engine: VLLMEngine) -> None:
    traces = list(vllm_engine.sample(QUESTIONS[:1], replace(SAMPLING, n=40), PRUNED))
    assert sum(t.finish_reason == "pruned" for t in traces) == 20
    assert {t.num_tokens for t in traces if t.finish_reason == "pruned"} == {33}


def test_a_group_with_members_missing_goes_on(vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arrol_tts.stopping.rules.base.PATIENCE_SECONDS", 0.1)
    spec = replace(PRUNED, group="missing", size=4).to_dict()
    for i in range(3):
        submit(vllm_engine, {"arrol": spec}, f"m{i}", seed=i)
    done = drain(vllm_engine)
    logs = [done[f"m{i}"].kv_transfer_params["arrol"] for i in range(3)]
    # The fourth never comes: after a while the three decide, and 2 of 3 are kept.
    assert sum(log.verdict is not None for log in logs) == 1


def test_an_aborted_member_does_not_block_its_group(vllm_engine: VLLMEngine) -> None:
    spec = replace(PRUNED, group="aborted", size=4).to_dict()
    ids = [submit(vllm_engine, {"arrol": spec}, f"a{i}", seed=i) for i in range(4)]
    for _ in range(5):
        vllm_engine._loop.engine.step()
    vllm_engine._loop.engine.abort_request([ids[0]], internal=True)
    done = drain(vllm_engine)
    assert sorted(done) == ["a1", "a2", "a3"]
    assert sum(o.kv_transfer_params["arrol"].verdict is not None for o in done.values()) == 1


@pytest.mark.parametrize(
    "spec",
    ["{", 7, [], {"rules": 3}, {"score_at": [-1]}, {"rules": [{"rule": "keep_share", "at": 1, "share": 9}]}],
)
def test_malformed_spec_ends_its_own_request_and_nothing_else(vllm_engine: VLLMEngine, spec: object) -> None:
    submit(vllm_engine, {"arrol": spec}, "bad")
    submit(vllm_engine, None, "plain")
    done = drain(vllm_engine)
    assert done["bad"].outputs[0].stop_reason == "refused"
    assert (
        "must be" in done["bad"].kv_transfer_params["arrol"]["error"]
        or "not valid JSON" in (done["bad"].kv_transfer_params["arrol"]["error"])
    )
    assert len(done["plain"].outputs[0].token_ids) > 1
    assert scheduler_of(vllm_engine)._refused == {}


def test_requests_without_a_spec_are_served_as_ever(vllm_engine: VLLMEngine) -> None:
    submit(vllm_engine, None, "plain")
    output = drain(vllm_engine)["plain"]
    assert output.kv_transfer_params is None
    assert output.outputs[0].finish_reason in ("stop", "length")


def test_a_caller_who_stops_listening_leaves_nothing_behind(vllm_engine: VLLMEngine) -> None:
    all_free = free_blocks(vllm_engine)
    listening = vllm_engine.sample(QUESTIONS, SAMPLING, PRUNED)
    next(listening)
    listening.close()
    drain(vllm_engine)
    assert free_blocks(vllm_engine) == all_free
    monitor = scheduler_of(vllm_engine)._monitor
    assert (monitor.logs, monitor._groups, monitor._holding) == ({}, {}, {})


def test_a_slow_vote_holds_up_nobody_else(vllm_engine: VLLMEngine) -> None:
    others: list[int] = []

    def slow_vote(trace: Trace) -> str:
        if not others:
            # Another call starts and ends while this one is still counting votes.
            sampling = replace(SAMPLING, n=2, max_tokens=16)
            others.append(len(list(vllm_engine.sample(QUESTIONS[1:2], sampling))))
        return ""

    assert len(list(vllm_engine.sample(QUESTIONS[:1], SAMPLING, stop_question=slow_vote))) == 8
    assert others == [2]


def test_a_caller_in_another_thread_is_woken_when_the_call_is_closed(vllm_engine: VLLMEngine) -> None:
    listening = vllm_engine.sample(QUESTIONS, replace(SAMPLING, min_tokens=250))
    took: list[Trace] = []
    reader = threading.Thread(target=lambda: took.extend(listening))
    reader.start()
    listening.close()
    reader.join(timeout=30)
    assert not reader.is_alive()
    assert len(took) < len(QUESTIONS) * SAMPLING.n


def test_a_specs_wire_form_is_read_once_a_question(vllm_engine: VLLMEngine) -> None:
    from arrol_tts.engine.vllm_plugin import scheduler

    scheduler._parse.cache_clear()
    spec = json.dumps(replace(PRUNED, group="cached", size=3).to_dict())
    for i in range(3):
        submit(vllm_engine, {"arrol": spec}, f"c{i}", seed=i)
    drain(vllm_engine)
    assert (scheduler._parse.cache_info().misses, scheduler._parse.cache_info().hits) == (1, 2)


def test_a_head_of_another_width_is_refused_before_the_model_loads(tmp_path: Path) -> None:
    from arrol_tts import HeadError, QualityHead, QualityHeadConfig
    from arrol_tts.engine.vllm_engine import VLLMEngine

    QualityHead(QualityHeadConfig(base_model="owner/other", hidden_size=64)).save_pretrained(tmp_path)
    with pytest.raises(HeadError, match=r"width 64 \(it was trained for owner/other\).*has width 128"):
        VLLMEngine(POCKET_MODEL, head=tmp_path)


def test_limits_that_nobody_gave_are_those_of_vllms_own_class_on_this_device(vllm_engine: VLLMEngine) -> None:
    from vllm import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    tokens, _ = EngineArgs.get_batch_defaults(1)
    config = vllm_engine._loop.engine.vllm_config.scheduler_config
    assert config.max_num_batched_tokens == tokens[UsageContext.LLM_CLASS] == 4096


def test_prompts_that_do_not_fit_are_refused(vllm_engine: VLLMEngine) -> None:
    with pytest.raises(ValueError, match="exceeds the model's 512: lower max_tokens"):
        vllm_engine.sample(QUESTIONS, Sampling(max_tokens=510))


def test_other_versions_of_vllm_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    from arrol_tts.engine.vllm_plugin import check_vllm

    check_vllm()
    monkeypatch.setattr(vllm, "__version__", "0.19.1")
    with pytest.raises(RuntimeError, match=r"vLLM 0\.19\.1 is installed.*supports vLLM 0\.31, 0\.32 and 0\.33"):
        check_vllm()


def test_what_a_failed_step_has_left_is_handed_on_as_vllm_033_asks_for_it() -> None:
    from vllm.v1.outputs import AsyncModelRunnerOutput

    from arrol_tts.engine.vllm_plugin.worker import _OutputWithSignals

    class Late(AsyncModelRunnerOutput):
        def get_output(self) -> Any:
            raise RuntimeError("the step failed")

        def get_kv_connector_output(self) -> str:
            return "saved"

    output = _OutputWithSignals(Late(), lambda output: output)
    assert output.get_kv_connector_output() == "saved"


def test_a_scheduler_without_the_needed_methods_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    from arrol_tts.engine.vllm_plugin import check_vllm

    monkeypatch.delattr(Scheduler, "_free_request")
    with pytest.raises(RuntimeError, match="Scheduler lacks _free_request"):
        check_vllm()


def test_a_runner_laid_out_differently_is_named_when_the_model_loads() -> None:
    from arrol_tts.engine.vllm_plugin import require

    with pytest.raises(RuntimeError, match=r"vLLM's SimpleNamespace lacks logits: .* 0\.31, 0\.32 and 0\.33"):
        require(SimpleNamespace(hidden_states=1), "hidden_states", "logits")
