"""One regression test for each mistake that others made when they read hidden states inside vLLM."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from arrol_tts import Trace
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import KeepShare, Threshold, TraceSpec
from arrol_tts.voting import vote
from tests.arrol_tts.engine.parity import SCORE_TOLERANCE, Reference

if TYPE_CHECKING:
    from pathlib import Path

    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")

QUESTION = Question("q", "3*2+2+2*2+5*5+4*2+4*2+4-5+6-9*5+7-2-8")
SAMPLING = Sampling(n=6, max_tokens=60, seed=2)


def core_of(engine: VLLMEngine) -> Any:
    return engine._loop.engine.engine_core.engine_core


def worker_of(engine: VLLMEngine) -> Any:
    return core_of(engine).model_executor.driver_worker.worker


def test_a_score_is_read_from_the_requests_own_row_not_from_the_next_free_one(
    vllm_engine: VLLMEngine, reference: Reference
) -> None:
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    # In any step only one of the five asks for a score, the first of the batch last of all.
    prompt = encode_prompt(vllm_engine._tokenizer, QUESTION.text)
    positions = {f"r{i}": 11 - 2 * i for i in range(5)}
    for i, (name, position) in enumerate(positions.items()):
        spec = TraceSpec(score_at=(position,)).to_dict()
        params = SamplingParams(max_tokens=16, ignore_eos=True, seed=i, detokenize=False)
        params.extra_args = {"arrol": spec}
        vllm_engine._loop.engine.add_request(name, tokens_input(prompt), params)
    done: dict[str, Any] = {}
    while vllm_engine._loop.engine.has_unfinished_requests():
        done |= {output.request_id: output for output in vllm_engine._loop.engine.step() if output.finished}
    for name, position in positions.items():
        scores, _ = reference.read(QUESTION.text, done[name].outputs[0].token_ids)
        ((found, score),) = done[name].kv_transfer_params["arrol"].scores.items()
        assert found == position
        assert score == pytest.approx(float(scores[position]), abs=SCORE_TOLERANCE)


def test_positions_count_generated_tokens_not_the_prompts(vllm_engine: VLLMEngine, reference: Reference) -> None:
    prompt = encode_prompt(vllm_engine._tokenizer, QUESTION.text)
    assert len(prompt) > 30
    spec = TraceSpec(score_at=(5, 30), rules=(Threshold(30, 1.0),))
    traces = list(vllm_engine.sample([QUESTION], SAMPLING, spec))
    assert {t.num_tokens for t in traces if t.finish_reason == "pruned"} == {31}
    reference.assert_signals(traces, [QUESTION], spec)


def test_the_head_is_loaded_once_not_every_step(vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    from arrol_tts.head import QualityHead

    loads = Counter[str]()
    monkeypatch.setattr(QualityHead, "__init__", lambda *_: loads.update(["head"]))
    head = worker_of(vllm_engine).arrol_heads[""]
    list(vllm_engine.sample([QUESTION], SAMPLING, TraceSpec(score_finish=True)))
    assert loads["head"] == 0
    assert worker_of(vllm_engine).arrol_heads[""] is head


def test_new_weights_of_the_head_stay_until_the_next_ones(vllm_engine: VLLMEngine, tmp_path: Path) -> None:
    from arrol_tts.head import QualityHead
    from arrol_tts.pocket import POCKET_HEAD

    certain = QualityHead.from_pretrained(POCKET_HEAD)
    torch.nn.init.zeros_(certain.outer.weight)
    torch.nn.init.constant_(certain.outer.bias, 0.0)
    certain.save_pretrained(tmp_path)
    expected = float(certain(torch.zeros(1, vllm_engine.hidden_size)))
    core_of(vllm_engine).collective_rpc("arrol_load_head", args=(str(tmp_path),))
    try:
        traces = list(vllm_engine.sample([QUESTION], SAMPLING, TraceSpec(score_at=(1, 20), score_finish=True)))
    finally:
        core_of(vllm_engine).collective_rpc("arrol_load_head", args=(str(POCKET_HEAD),))
    assert {round(score, 5) for trace in traces for score in trace.scores.values()} == {round(expected, 5)}


class TestErrorsAreNotSwallowed:
    @pytest.fixture(autouse=True)
    def _one_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vllm.v1.worker.gpu_worker.get_pp_group", lambda: SimpleNamespace(is_first_rank=True))

    def run(self, head: Any, *rules: KeepShare | Threshold, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        from tests.arrol_tts.engine.standin import StandinEngine, StandinHead

        engine = StandinEngine()
        engine.worker.arrol_heads = {} if head is None else {"": StandinHead(head)}
        engine.runner.dtype = dtype
        for i in range(4):
            engine.submit(f"r{i}", range(9), 24, TraceSpec(group="g", size=4, rules=rules))
        return engine.run()

    def test_a_head_that_fails_ends_the_requests_that_need_it_with_a_standin_runner(self) -> None:
        def fail(hidden: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("mat1 and mat2 must have the same dtype")

        ended = self.run(fail, Threshold(7, 0.5))
        assert {end.stop_reason for end in ended.values()} == {"refused"}
        assert all("must have the same dtype" in end.log["error"] for end in ended.values())

    def test_a_missing_head_ends_the_requests_that_need_it_with_a_standin_runner(self) -> None:
        ended = self.run(None, Threshold(7, 0.5))
        assert {end.stop_reason for end in ended.values()} == {"refused"}
        assert all("returned no scores or confidences" in end.log["error"] for end in ended.values())

    def test_scores_that_are_not_numbers_are_pruned_with_a_standin_runner(self) -> None:
        ended = self.run(lambda hidden: hidden[:, 0] * math.nan, Threshold(7, 0.5))
        assert {end.stop_reason for end in ended.values()} == {"pruned"}

    def test_half_precision_states_are_scored_with_a_standin_runner(self) -> None:
        linear = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        ended = self.run(lambda hidden: linear(hidden)[:, 0], KeepShare(7, 0.5), dtype=torch.bfloat16)
        assert sum(end.stop_reason == "pruned" for end in ended.values()) == 2


def test_pruned_traces_have_no_vote() -> None:
    finished = [Trace("q", i, answer=answer, num_tokens=9) for i, answer in enumerate(["4", "4", "5"])]
    pruned = [Trace("q", 3 + i, num_tokens=3, finish_reason="pruned") for i in range(5)]
    result = vote(finished + pruned)
    assert (result.answer, result.confidence) == ("4", pytest.approx(2 / 3))


def test_pruned_traces_are_not_labelled_wrong(vllm_engine: VLLMEngine, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from arrol_tts import WeightedVoter
    from arrol_tts.head_config import read_head_config, resolve_head
    from evals.benchmarks.pocket import load
    from evals.sampling.seed_samples import sample_seed

    voter = WeightedVoter(vllm_engine, config=read_head_config(resolve_head("pocket")))
    run = sample_seed(load(2), voter, n=8, seed=0, keep=0.5, out=tmp_path)
    traces = [trace for group in run.passes["pruned"].values() for trace in group]
    assert {trace.correct for trace in traces if trace.finish_reason == "pruned"} == {None}
    assert {trace.correct for trace in traces if trace.finish_reason != "pruned"} <= {True, False}


def test_scores_cost_no_call_to_the_worker_of_their_own(
    vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = core_of(vllm_engine).model_executor
    calls: Counter[str] = Counter()
    call = executor.collective_rpc

    def count(method: Any, *args: Any, **kwargs: Any) -> Any:
        calls[method] += 1
        return call(method, *args, **kwargs)

    monkeypatch.setattr(executor, "collective_rpc", count)
    list(vllm_engine.sample([QUESTION], SAMPLING))
    plain, calls = calls, Counter()
    list(vllm_engine.sample([QUESTION], SAMPLING, TraceSpec(score_every=1, score_finish=True, confidence=True)))
    assert calls == plain
    assert set(calls) == {"execute_model", "sample_tokens"}


def test_an_abort_reaches_the_engines_own_requests(vllm_engine: VLLMEngine) -> None:
    listening = vllm_engine.sample([Question("q", "2+3*4-5*6+7-8")], replace(SAMPLING, n=24, max_tokens=200))
    next(listening)
    scheduler = core_of(vllm_engine).scheduler
    assert len(scheduler.requests) > 1
    listening.close()
    assert scheduler.requests == {}
    assert scheduler.running == []
