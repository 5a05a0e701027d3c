"""What scoring and stopping cost inside vLLM, and what they save: ``python -m evals.bench.engine``.

Everything runs in real vLLM on this machine's CPU; arms that are compared take turns in one process.

- Step time, head off and on: stock vLLM against vLLM with our worker and scheduler and a head that scores
  every token and the finish. The pocket model with its head and 256 sequences (synthetic), and a model of
  SmolLM2-135M's shape with a head that pools, both of random weights (a step's time does not depend on their
  values), with 32.
- DeepConf online: our ``ConfidenceFloor`` against the same rule on log-probabilities that vLLM returns, as
  DeepConf's own code does it.
- Verdict to freed memory: steps between the step in which a trace is pruned and the one in which its KV
  blocks are free.
- Scheduler: processor time that the plug-in adds to vLLM's scheduler in a step with 1,024 requests; no model runs.
- Tokens and accuracy of every stopping rule on pocket test questions (synthetic), one seed, all rules on the
  same questions and seeds.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import Progress

from arrol_tts import (
    Budget,
    ConfidenceFloor,
    Consensus,
    KeepShare,
    Threshold,
    TraceSpec,
    VoteResult,
    WeightedVoter,
)
from arrol_tts.engine.vllm_engine import CPU_KV_CACHE_BYTES
from arrol_tts.engine.vllm_loop import VLLMLoop
from arrol_tts.engine.vllm_plugin import CPU_OPTIONS, vllm_options
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL, questions, verify

from . import add_part, write_result
from .compared import student_interval
from .engine_scheduler import scheduler

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

SEED = 0
TOP_K = 20
PAIRS = 11
"""Rounds in which two arms take turns; a warm-up round before them is not counted."""
ENGINE_PAIRS = 6
"""Engines made for a comparison of their steps, of each of two kinds."""
ROUNDS = 3
"""Of each pair of engines; a warm-up round before them is not counted."""
TURN = 8
"""Decoding steps of a turn, where arms take turns within a round: twice what our scheduler takes in at once."""
PROMPT_STEPS = 4
"""First steps of a round, in which prompts are read; they are not counted."""

app = typer.Typer(add_completion=False)


def make_engine(
    model: Path, *, head: Path | None, max_num_seqs: int, plugin: bool = True, **options: Any
) -> LLMEngine:
    """A vLLM engine without a tokenizer, stock or with the plug-in, to be stepped by the thread that makes it."""
    # As VLLMEngine does: the CPU platform would otherwise start worker processes.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    chosen: dict[str, Any] = {
        **CPU_OPTIONS,
        "max_model_len": 512,
        "max_num_seqs": max_num_seqs,
        "skip_tokenizer_init": True,
        "distributed_executor_backend": "uni",
        "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
        **options,
    }
    if plugin:
        chosen |= vllm_options(head=None if head is None else str(head), top_k=TOP_K)
    config = EngineArgs(model=str(model), **chosen).create_engine_config()
    return LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)


def engine_loop(model: Path, **options: Any) -> VLLMLoop:
    """An engine as `make_engine`'s, on a thread of its own."""
    return VLLMLoop(partial(make_engine, model, **options), lambda engine: engine.engine_core.shutdown())


def submit(
    engine: Any,
    prompts: Sequence[Sequence[int]],
    spec: TraceSpec | None,
    *,
    first_seed: int | None = None,
    **params: Any,
) -> list[str]:
    """Add a request for each prompt, seeded one after the other; returns their names."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    names = []
    extra = None if spec is None else {CONFIG_KEY: spec.to_dict()}
    params = {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY} | params
    for i, prompt in enumerate(prompts):
        names.append(f"bench-{next(_names)}")
        seed = None if first_seed is None else first_seed + i
        chosen = SamplingParams(extra_args=extra, seed=seed, **params)
        engine.add_request(names[-1], tokens_input(list(prompt)), chosen)
    return names


_names = itertools.count()


def decode(engine: Any, steps: int) -> list[float]:
    """Seconds of each of the next steps, as many as there are up to so many."""
    seconds: list[float] = []
    while len(seconds) < steps and engine.has_unfinished_requests():
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def compare_steps(
    model: Path,
    head: Path,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    specs: Sequence[TraceSpec],
    **options: Any,
) -> list[dict[str, Any]]:
    """Step times of stock engines and ours that decode the same prompts and take turns; no trace ends early.

    A machine's speed drifts by a tenth and more within seconds: turns of a tenth of a second at the same tokens
    see the same machine. Where an engine's weights came to lie in memory makes some percent too, so several pairs
    of engines are made, in both orders. All run on this thread, which has one set of OpenMP threads.

    Args:
        model, head: folders; stock engines have no head.
        prompts: token ids.
        tokens: generated for each.
        specs: what is asked of our engine; one result for each.
        options: of both engines.
    """
    make = (
        partial(make_engine, model, head=None, plugin=False, **options),
        partial(make_engine, model, head=head, **options),
    )
    turns: list[list[list[tuple[float, float]]]] = [[] for _ in specs]
    for pair in range(ENGINE_PAIRS):
        made = {arm: make[arm]() for arm in ((0, 1) if pair % 2 else (1, 0))}
        engines = made[0], made[1]
        for spec, found in zip(specs, turns, strict=True):
            found.append(_turns(engines, prompts, tokens, spec))
        for engine in engines:
            engine.engine_core.shutdown()
    return [_compared(len(prompts), found) for found in turns]


def _turns(
    engines: tuple[LLMEngine, LLMEngine], prompts: Sequence[Sequence[int]], tokens: int, spec: TraceSpec
) -> list[tuple[float, float]]:
    """Mean seconds of a step of both engines in each turn."""
    turns: list[tuple[float, float]] = []
    for i in range(ROUNDS + 1):
        for engine, wanted in zip(engines, (None, spec), strict=True):
            submit(engine, prompts, wanted, max_tokens=tokens, ignore_eos=True)
            decode(engine, PROMPT_STEPS)
        while True:
            order = (0, 1) if (i + len(turns)) % 2 else (1, 0)
            seconds = {arm: decode(engines[arm], TURN) for arm in order}
            if min(map(len, seconds.values())) < TURN:  # the last steps, of another kind
                break
            if i:
                turns.append((float(np.mean(seconds[0])), float(np.mean(seconds[1]))))
    return turns


def _compared(sequences: int, turns: list[list[tuple[float, float]]]) -> dict[str, Any]:
    """Figures of the turns of each pair of engines; the interval is Student's over the pairs."""
    medians = [float(np.median([on / off for off, on in pair])) for pair in turns]
    return {
        "sequences": sequences,
        "step_ms_off": round(1e3 * float(np.median([off for pair in turns for off, _ in pair])), 2),
        "step_ms_on": round(1e3 * float(np.median([on for pair in turns for _, on in pair])), 2),
        "turns": sum(map(len, turns)),
        "ratio": round(float(np.mean(medians)), 4),
        "ratio_interval": [round(end, 4) for end in student_interval(medians)],
        "ratio_of_each_pair_of_engines": [round(median, 4) for median in medians],
    }


def pocket_prompts(count: int) -> list[list[int]]:
    """Token ids of pocket test questions."""
    from transformers import AutoTokenizer

    from arrol_tts.prompts import encode_prompt

    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    return [encode_prompt(tokenizer, q.text) for q in itertools.islice(questions("test", SEED), count)]


def random_model(folder: Path, config: Mapping[str, Any]) -> tuple[Path, Path]:
    """A Llama of a given shape with random bfloat16 weights, and a random head for it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from arrol_tts.head import QualityHead
    from arrol_tts.head_config import QualityHeadConfig

    torch.manual_seed(SEED)
    shape = LlamaConfig(**config)
    LlamaForCausalLM(shape).bfloat16().save_pretrained(folder / "model")
    reads = QualityHeadConfig("../model", shape.hidden_size, inner_size=256, pooling="mean", positions=[32])
    QualityHead(reads).save_pretrained(folder / "head")
    return folder / "model", folder / "head"


SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@app.command()
def main(
    only: str = typer.Option(
        "", help="one part alone, printed and not written: steps, deepconf, verdict, scheduler or rules"
    ),
    part: str = typer.Option("", help="one part alone, written beside the committed figures of the others"),
) -> None:
    """Run all parts and write evals/results/engine.json."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "steps": steps,
        "deepconf": deepconf,
        "verdict": verdict,
        "scheduler": scheduler,
        "rules": rules,
    }
    if only:
        typer.echo(parts[only]())
        return
    figures: dict[str, Any] = {}
    if part:
        typer.echo(f"wrote {add_part('engine', part, parts[part]())}")
        return
    for name, run in parts.items():
        typer.echo(name)
        figures |= run()
        typer.echo({k: v for k, v in figures.items() if not isinstance(v, (list, dict))})
    typer.echo(f"wrote {write_result('engine', figures, [SEED])}")


def steps() -> dict[str, Any]:
    """Step time with the head off and on."""
    every = TraceSpec(score_every=1, score_finish=True)
    with_confidence = TraceSpec(score_every=1, score_finish=True, confidence=True)
    pocket, confident = compare_steps(
        POCKET_MODEL,
        POCKET_HEAD,
        pocket_prompts(256),
        80,
        [every, with_confidence],
        max_num_seqs=256,
        dtype="float32",
    )
    with tempfile.TemporaryDirectory() as folder:
        model, head = random_model(Path(folder), SMOLLM2_135M)
        rng = np.random.default_rng(SEED)
        texts = rng.integers(0, SMOLLM2_135M["vocab_size"], (32, 24)).tolist()
        (large,) = compare_steps(model, head, texts, 40, [every], max_num_seqs=32, dtype="bfloat16")
    return {
        "head_step_ratio_pocket": pocket["ratio"],
        "head_and_confidence_step_ratio_pocket": confident["ratio"],
        "head_step_ratio_135m": large["ratio"],
        "steps": {"pocket": pocket, "pocket_with_confidence": confident, "135m": large},
    }


def deepconf() -> dict[str, Any]:
    """DeepConf online with our floor, and with 20 log-probabilities a token returned and post-processed.

    The latter once as vLLM returns them by default, every candidate decoded, as DeepConf's code uses them,
    and once without decoding, which leaves its users without a text.
    """
    rule = ConfidenceFloor(warmup=16, keep=0.5, window=32)
    prompts = pocket_prompts(8)
    loop = engine_loop(POCKET_MODEL, head=None, max_num_seqs=256, dtype="float32", skip_tokenizer_init=False)
    arms: dict[str, Callable[[Any], tuple[int, int, float]]] = {
        "ours": lambda engine: floor_in_engine(engine, prompts, 32, rule),
        "logprobs": lambda engine: floor_by_logprobs(engine, prompts, 32, rule, detokenize=True),
        "logprobs_undecoded": lambda engine: floor_by_logprobs(engine, prompts, 32, rule, detokenize=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    stopped: dict[str, list[int]] = {name: [] for name in arms}
    for _ in range(PAIRS // 2 + 1):
        for name, run in arms.items():
            tokens, stops, seconds = loop.call(run)
            rates[name].append(tokens / seconds)
            stopped[name].append(stops)

    def speedup(name: str) -> float:
        pairs = zip(rates["ours"][1:], rates[name][1:], strict=True)
        return round(float(np.median([ours / theirs for ours, theirs in pairs])), 3)

    return {
        "deepconf_online_speedup": speedup("logprobs"),
        "deepconf_online_speedup_undecoded": speedup("logprobs_undecoded"),
        "deepconf_online": {
            "requests": len(prompts) * 32,
            "tokens_per_second": {name: [round(rate) for rate in values[1:]] for name, values in rates.items()},
            "stopped_traces": {name: values[1:] for name, values in stopped.items()},
        },
    }


MAX_TOKENS = 288


def floor_in_engine(
    engine: Any, prompts: Sequence[Sequence[int]], size: int, rule: ConfidenceFloor
) -> tuple[int, int, float]:
    """Generated tokens, stopped traces and seconds with the rule in the scheduler."""
    start = time.perf_counter()
    for i, prompt in enumerate(prompts):
        spec = TraceSpec(group=f"floor-{next(_names)}", size=size, rules=(rule,))
        submit(engine, [prompt] * size, spec, first_seed=i * size, max_tokens=MAX_TOKENS)
    tokens = stopped = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            tokens += len(output.outputs[0].token_ids)
            stopped += output.outputs[0].stop_reason == "pruned"
    return tokens, stopped, time.perf_counter() - start


def floor_by_logprobs(
    engine: Any, prompts: Sequence[Sequence[int]], size: int, rule: ConfidenceFloor, *, detokenize: bool
) -> tuple[int, int, float]:
    """The same on returned log-probabilities, as DeepConf's code works; the others start after the warm-up."""
    from vllm.sampling_params import RequestOutputKind

    params = {
        "logprobs": TOP_K,
        "max_tokens": MAX_TOKENS,
        "output_kind": RequestOutputKind.DELTA,
        "detokenize": detokenize,
    }
    start = time.perf_counter()
    group_of: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        group_of |= dict.fromkeys(submit(engine, [prompt] * rule.warmup, None, first_seed=i * size, **params), i)
    confidences: dict[str, list[float]] = {name: [] for name in group_of}
    lowest: dict[int, list[float]] = {i: [] for i in range(len(prompts))}
    floors: dict[int, float] = {}
    tokens = stopped = 0
    while engine.has_unfinished_requests():
        low = []
        for output in engine.step():
            name, completion = output.request_id, output.outputs[0]
            if name not in confidences:
                continue
            trace, group = confidences[name], group_of[name]
            for step in completion.logprobs or ():
                trace.append(-sum(candidate.logprob for candidate in step.values()) / len(step))
            tokens += len(completion.token_ids)
            judged = group in floors and not output.finished and len(trace) >= rule.window
            if judged and sum(trace[-rule.window :]) / rule.window < floors[group]:
                low.append(name)
            if output.finished:
                del confidences[name]
                lowest[group].append(_lowest_window(trace, rule.window))
                if group not in floors and len(lowest[group]) == rule.warmup:
                    floors[group] = float(np.percentile(lowest[group], 100 * (1 - rule.keep)))
                    later = [prompts[group]] * (size - rule.warmup)
                    rest = submit(engine, later, None, first_seed=group * size + rule.warmup, **params)
                    group_of |= dict.fromkeys(rest, group)
                    confidences |= {name: [] for name in rest}
        if low:
            engine.abort_request(low)
            stopped += len(low)
            for name in low:
                del confidences[name]
    return tokens, stopped, time.perf_counter() - start


def _lowest_window(trace: list[float], window: int) -> float:
    if len(trace) < window:
        return sum(trace) / len(trace)
    return min(sum(trace[i : i + window]) / window for i in range(len(trace) - window + 1))


def verdict() -> dict[str, Any]:
    """Steps from a verdict to free memory: 0 when the blocks are free in the step that prunes."""
    loop = engine_loop(POCKET_MODEL, head=POCKET_HEAD, max_num_seqs=64, dtype="float32")
    prompts = pocket_prompts(1)

    def run(engine: Any) -> list[int]:
        scheduler = engine.engine_core.engine_core.scheduler
        pool = scheduler.kv_cache_manager.block_pool
        spec = TraceSpec(group="verdict", size=32, rules=(KeepShare(32, 0.5),))
        submit(engine, prompts * 32, spec, max_tokens=MAX_TOKENS)
        delays: list[int] = []
        while engine.has_unfinished_requests():
            before = pool.get_num_free_blocks()
            pruned = [o for o in engine.step() if o.outputs[0].stop_reason == "pruned"]
            if pruned:
                gained = pool.get_num_free_blocks() - before
                delays += [0 if gained >= len(pruned) else 1] * len(pruned)
        return delays

    delays = loop.call(run)
    return {"verdict_to_free_steps": max(delays), "verdicts": len(delays)}


NUM_QUESTIONS, NUM_TRACES = 48, 32


def rules() -> dict[str, Any]:
    """Tokens and accuracy of every rule on the same pocket questions and seeds (synthetic)."""
    asked = list(itertools.islice(questions("test", SEED + 1), NUM_QUESTIONS))
    texts = {f"q{i}": q.text for i, q in enumerate(asked)}
    voter = WeightedVoter.from_pretrained("pocket", engine="vllm", max_num_seqs=128, max_model_len=512)
    window = int(voter.config.voting["deepconf"]["window"])  # type: ignore[union-attr]
    full = {"keep": 1.0}
    mean_tokens = 150 * NUM_TRACES
    arms: list[tuple[str, str, dict[str, Any]]] = [
        ("none", "", full),
        *(("keep_share", f"{share:g} at 32", {"keep": share, "at": 32}) for share in (0.25, 0.5, 0.75)),
        (
            "keep_share in sequence",
            "0.5 at 16, 0.25 at 48",
            {"keep": 0.5, "at": 16, "rules": [KeepShare(48, 0.25)]},
        ),
        *(("threshold", f"{b:g} at 32", full | {"rules": [Threshold(32, b)]}) for b in (0.1, 0.3)),
        *(
            ("confidence_floor", f"keep {k:g}", full | {"rules": [ConfidenceFloor(16, k, window)]})
            for k in (0.1, 0.5, 0.9)
        ),
        *(
            ("budget", f"{share:.0%}", full | {"rules": [Budget(32, round(share * mean_tokens), 150)]})
            for share in (0.4, 0.6)
        ),
        ("consensus", "quality share 0.9", full | {"consensus": Consensus(share=0.9, method="quality")}),
        ("consensus", "majority certain 0.95", full | {"consensus": Consensus(certainty=0.95)}),
        (
            "keep_share + consensus",
            "0.5 at 32, 0.9",
            {"keep": 0.5, "consensus": Consensus(share=0.9, method="quality")},
        ),
    ]
    rows: list[dict[str, Any]] = []
    right_of: list[NDArray[np.bool_]] = []
    with Progress() as bar:
        task = bar.add_task("rules", total=len(arms))
        for rule, setting, options in arms:
            start = time.perf_counter()
            results = voter.solve_many(texts, NUM_TRACES, seed=SEED, confidence=True, **options)
            seconds = time.perf_counter() - start
            right_of.append(np.array([verify(texts[r.question_id], r.answer) for r in results]))
            rows.append(_row(rule, setting, results, voter, texts, right_of, seconds))
            bar.advance(task)
    voter.close()
    for row in rows:
        row["tokens_saved"] = round(1 - row["tokens_a_question"] / rows[0]["tokens_a_question"], 4)
    return {"rules": {"synthetic": True, "questions": NUM_QUESTIONS, "traces": NUM_TRACES, "curve": rows}}


def _row(
    rule: str,
    setting: str,
    results: Sequence[VoteResult],
    voter: WeightedVoter,
    texts: Mapping[str, str],
    right_of: Sequence[NDArray[np.bool_]],
    seconds: float,
) -> dict[str, Any]:
    right, full = right_of[-1], right_of[0]
    majority = [verify(texts[r.question_id], voter.vote(r.traces, "majority").answer) for r in results]
    rng = np.random.default_rng(SEED)
    picks = rng.integers(0, len(right), (2000, len(right)))
    differences = (right[picks].mean(1) - full[picks].mean(1)) if rule != "none" else np.zeros(1)
    return {
        "rule": rule,
        "setting": setting,
        "tokens_a_question": round(float(np.mean([r.tokens.generated for r in results])), 1),
        "accuracy_quality": round(float(right.mean()), 4),
        "accuracy_majority": round(float(np.mean(majority)), 4),
        "accuracy_against_none": [round(float(q), 4) for q in np.quantile(differences, (0.025, 0.5, 0.975))],
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    app()
