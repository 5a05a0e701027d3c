"""The reference engine: plain transformers in lockstep, for laptops without vLLM and for comparisons."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LogitsProcessorList
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from arrol_tts.engine.base import DEFAULT_TOP_K, group_specs, make_trace
from arrol_tts.engine.request import Question, Sampling, StopQuestion, check_request, never_stop
from arrol_tts.engine.signals import token_confidence
from arrol_tts.engine.stop_texts import StopTexts
from arrol_tts.events import Progress
from arrol_tts.prompts import prompt_ids
from arrol_tts.stopping import Monitor, TraceSpec
from arrol_tts.trace import FinishReason, Trace

if TYPE_CHECKING:
    from arrol_tts.head import QualityHead
    from arrol_tts.streams import Closing


@dataclass(eq=False, slots=True)
class _Row:
    question: Question
    sample_id: int
    spec: TraceSpec
    prompt: list[int]
    generator: torch.Generator
    token_ids: list[int]
    reported: int = 0


class TransformersEngine:
    """Samples with a transformers model, all traces of a batch one token at a time.

    Args:
        model: path or hub id of a causal language model.
        head: quality head, or several by name (a spec's ``head`` says which one scores, "" is the default);
            None for sampling without scores.
        top_k: candidates of DeepConf's token confidence.
        batch_size: traces computed together; a question's traces always are, so a batch is at least n.
        device: where to run; a GPU when there is one.
        dtype: weight type, ``"auto"`` for the checkpoint's own.

    Raises:
        HeadError: when the head is for another hidden size.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        head: QualityHead | Mapping[str, QualityHead] | None = None,
        top_k: int = DEFAULT_TOP_K,
        batch_size: int = 128,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        self.model = str(model)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = cast(Any, AutoTokenizer.from_pretrained(self.model))
        self._lm = cast(Any, AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype))
        self._lm.to(self._device).eval()
        self.hidden_size = int(self._lm.config.get_text_config().hidden_size)
        self._heads: dict[str, QualityHead] = {}
        for name, each in (head if isinstance(head, Mapping) else {} if head is None else {"": head}).items():
            each.config.check_model(hidden_size=self.hidden_size, model=self.model)
            self._heads[name] = each.to(self._device).eval()
        self._stop_texts = StopTexts(self._tokenizer)
        self._top_k = top_k
        self._batch_size = batch_size
        eos = self._lm.generation_config.eos_token_id
        self._eos = set(eos if isinstance(eos, list) else [] if eos is None else [eos])

    def sample(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        *,
        stop_question: StopQuestion = never_stop,
    ) -> Closing[Trace]:
        """See ``Engine.sample``."""
        spec = spec or TraceSpec()
        check_request(questions, sampling, spec, has_head=spec.head in self._heads)
        traces = self._sample(questions, sampling, spec, stop_question)
        return (trace for trace in traces if isinstance(trace, Trace))

    def stream(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        *,
        stop_question: StopQuestion = never_stop,
        every: float = 0.1,
    ) -> Closing[Progress | Trace]:
        """See ``Engine.stream``."""
        spec = spec or TraceSpec()
        check_request(questions, sampling, spec, has_head=spec.head in self._heads)
        return self._sample(questions, sampling, spec, stop_question, every)

    def _sample(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec,
        stop_question: StopQuestion,
        every: float = math.inf,
    ) -> Generator[Progress | Trace, None, None]:
        specs = group_specs(questions, sampling, spec)
        per_batch = max(1, self._batch_size // sampling.n)
        for first in range(0, len(questions), per_batch):
            rows = []
            for question, question_spec in zip(
                questions[first : first + per_batch], specs[first : first + per_batch], strict=True
            ):
                prompt = prompt_ids(self._tokenizer, question)
                for sample_id in question.wanted(sampling.n):
                    generator = torch.Generator().manual_seed(sampling.seed_of(question.id, sample_id))
                    rows.append(_Row(question, sample_id, question_spec, prompt, generator, []))
            yield from self._decode(rows, sampling, stop_question, every)

    def _decode(
        self, rows: list[_Row], sampling: Sampling, stop_question: StopQuestion, every: float
    ) -> Iterator[Progress | Trace]:
        """Sample rows to their ends; those that wait for their group follow in a later wave."""
        monitor = Monitor()
        for row in rows:
            monitor.add(row, row.spec)
        unfinished = dict.fromkeys(rows)
        stopped: dict[Question, str] = {}
        while unfinished:
            wave = [row for row in unfinished if not monitor.is_held(row)]
            if not wave:
                monitor.release(stuck=True)
            for event in self._wave(wave, sampling, monitor, stopped, every):
                if isinstance(event, Progress):
                    yield event
                    continue
                row, reason = event
                unfinished.pop(row)
                log = monitor.drop(row)
                assert log is not None
                detail = stopped[row.question] if reason == "cancelled" else ""
                text = self._tokenizer.decode(row.token_ids, skip_special_tokens=True)
                trace = make_trace(
                    row.question, row.sample_id, text, row.token_ids, reason, log.to_dict(), detail, row.spec.stop
                )
                if reason != "cancelled" and (why := stop_question(trace)):
                    stopped.setdefault(row.question, why)
                yield trace

    @torch.inference_mode()
    def _wave(
        self, rows: list[_Row], sampling: Sampling, monitor: Monitor, stopped: Mapping[Question, str], every: float
    ) -> Iterator[tuple[_Row, FinishReason] | Progress]:
        """Run rows in lockstep until each has ended or waits; names the ended, of this wave or not."""
        yield from ((row, "pruned") for row in _pruned(monitor))
        yield from ((row, "cancelled") for row in rows if row.question in stopped)
        rows = [row for row in rows if row in monitor.logs]
        if not rows:
            return
        warp = _warpers(sampling)
        # A row that waited is computed again from its prompt. Left padding lines up the ends.
        texts = [row.prompt + row.token_ids for row in rows]
        longest = max(len(text) for text in texts)
        inputs = torch.tensor([[0] * (longest - len(text)) + text for text in texts], device=self._device)
        mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts], device=self._device)
        cache = DynamicCache(config=self._lm.config)
        reported = time.monotonic()
        while True:
            output = self._lm(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs.shape[1] :],
                past_key_values=cache,
                logits_to_keep=1,
                output_hidden_states=True,
            )
            logits = output.logits[:, -1].float()
            confidence = logprobs = None
            scored = {row.spec.head for row in rows if monitor.logs[row].wants_scores}
            hidden = output.hidden_states[-1][:, -1].float()
            scores = {name: self._heads[name](hidden).tolist() for name in scored}
            if any(monitor.logs[row].wants_confidence for row in rows):
                confidence = token_confidence(logits, self._top_k).tolist()
            states = None
            if any(monitor.logs[row].wants_features for row in rows):
                states = hidden.cpu().numpy()
            tokens, distribution = self._choose(rows, logits, sampling, warp)
            if any(row.spec.logprobs for row in rows):
                chosen = torch.tensor(tokens, device=self._device)[:, None]
                logprobs = distribution.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
            ended: dict[_Row, FinishReason] = {}
            for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                position = len(row.token_ids)
                row.token_ids.append(token)
                if token in self._eos or (
                    row.spec.stop and self._stop_texts.written(row.token_ids, row.spec.stop)
                ):
                    ended[row] = "stop"
                elif position + 1 == sampling.max_tokens:
                    ended[row] = "length"
                monitor.observe(
                    row,
                    position,
                    score=scores[row.spec.head][i] if row.spec.head in scores else None,
                    confidence=confidence[i] if confidence else None,
                    logprob=logprobs[i] if logprobs and row.spec.logprobs else None,
                    token=row.token_ids[-2] if position else None,
                    feature=states[i].tobytes if states is not None else None,
                    finished=row in ended,
                )
            ended |= dict.fromkeys(_pruned(monitor), "pruned")
            if time.monotonic() - reported >= every:
                yield from (self._progress(row, monitor) for row in rows if row not in ended)
                reported = time.monotonic()
            yield from ended.items()
            yield from ((row, "cancelled") for row in rows if row not in ended and row.question in stopped)
            keep = [i for i, row in enumerate(rows) if row in monitor.logs and not monitor.is_held(row)]
            if not keep:
                return
            if len(keep) < len(rows):
                index = torch.tensor(keep, device=self._device)
                cache.batch_select_indices(index)
                mask = mask[index]
                rows = [rows[i] for i in keep]
            inputs = torch.tensor([[row.token_ids[-1]] for row in rows], device=self._device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)

    def _progress(self, row: _Row, monitor: Monitor) -> Progress:
        text = self._tokenizer.decode(row.token_ids, skip_special_tokens=True)
        news = monitor.logs[row].take_news() or {}
        scores = {k: score for k, score in news.get("scores", ()) if score is not None}
        new_text, row.reported = text[row.reported :], len(text)
        return Progress(row.question.id, row.sample_id, len(row.token_ids), new_text, scores)

    def _choose(
        self, rows: list[_Row], logits: torch.Tensor, sampling: Sampling, warp: LogitsProcessorList
    ) -> tuple[list[int], torch.Tensor]:
        """The next token of each row, and the logits that it was drawn from."""
        if sampling.temperature == 0:
            return list(logits.argmax(-1).tolist()), logits
        warped = warp(None, logits)  # type: ignore[arg-type]
        probabilities = warped.softmax(-1)
        # Dividing by exponential noise and taking the largest samples from the distribution, with one
        # generator a row, so that a trace does not depend on its neighbours.
        noise = torch.stack([torch.empty(logits.shape[-1]).exponential_(generator=r.generator) for r in rows])
        return list((probabilities / noise.to(self._device)).argmax(-1).tolist()), warped

    def close(self) -> None:
        """See ``Engine.close``."""
        self._lm = None


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    warp = LogitsProcessorList()
    if sampling.temperature not in (0, 1):
        warp.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warp.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warp.append(TopPLogitsWarper(sampling.top_p))
    return warp


def _pruned(monitor: Monitor) -> list[_Row]:
    return [key for key in monitor.take_verdicts() if isinstance(key, _Row)]
