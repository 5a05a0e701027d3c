"""The reference engine: plain transformers in lockstep, for laptops without vLLM and for comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LogitsProcessorList
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from arrol_tts.engine.base import Question, Sampling, check_request, encode_prompt, group_specs, make_trace
from arrol_tts.engine.signals import token_confidence
from arrol_tts.stopping import Monitor, TraceSpec
from arrol_tts.trace import FinishReason, Trace

if TYPE_CHECKING:
    from arrol_tts.head import QualityHead


@dataclass(eq=False, slots=True)
class _Row:
    question: Question
    sample_id: int
    spec: TraceSpec
    prompt: list[int]
    generator: torch.Generator
    token_ids: list[int]


class TransformersEngine:
    """Samples with a transformers model, all traces of a batch one token at a time.

    Args:
        model: path or hub id of a causal language model.
        head: quality head, None for sampling without scores.
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
        head: QualityHead | None = None,
        top_k: int = 20,
        batch_size: int = 128,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        self.model = str(model)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = AutoTokenizer.from_pretrained(self.model)
        self._lm: Any = AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype).to(self._device).eval()
        self.hidden_size = int(self._lm.config.get_text_config().hidden_size)
        if head is not None:
            head.config.check_model(hidden_size=self.hidden_size, model=self.model)
            head = head.to(self._device).eval()
        self._head = head
        self._top_k = top_k
        self._batch_size = batch_size
        eos = self._lm.generation_config.eos_token_id
        self._eos = set(eos if isinstance(eos, list) else [] if eos is None else [eos])

    def sample(
        self, questions: Sequence[Question], sampling: Sampling, spec: TraceSpec | None = None
    ) -> Iterator[Trace]:
        """See ``Engine.sample``."""
        spec = spec or TraceSpec()
        check_request(questions, sampling, spec, has_head=self._head is not None)
        return self._sample(questions, sampling, spec)

    def _sample(self, questions: Sequence[Question], sampling: Sampling, spec: TraceSpec) -> Iterator[Trace]:
        specs = group_specs(questions, sampling, spec)
        per_batch = max(1, self._batch_size // sampling.n)
        for first in range(0, len(questions), per_batch):
            rows = []
            for question, question_spec in zip(
                questions[first : first + per_batch], specs[first : first + per_batch], strict=True
            ):
                prompt = encode_prompt(self._tokenizer, question.text)
                for sample_id in range(sampling.n):
                    generator = torch.Generator().manual_seed(sampling.seed_of(question.id, sample_id))
                    rows.append(_Row(question, sample_id, question_spec, prompt, generator, []))
            yield from self._decode(rows, sampling)

    @torch.inference_mode()
    def _decode(self, rows: list[_Row], sampling: Sampling) -> Iterator[Trace]:
        monitor = Monitor()
        for row in rows:
            monitor.add(row, row.spec)
        warp = _warpers(sampling)
        longest = max(len(row.prompt) for row in rows)
        # Left padding lines up the ends of the prompts, so that all rows are at the same position.
        inputs = torch.tensor([[0] * (longest - len(row.prompt)) + row.prompt for row in rows])
        mask = torch.tensor([[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
        inputs, mask = inputs.to(self._device), mask.to(self._device)
        cache = DynamicCache(config=self._lm.config)
        for position in range(sampling.max_tokens):
            output = self._lm(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs.shape[1] :],
                past_key_values=cache,
                logits_to_keep=1,
                output_hidden_states=True,
            )
            logits = output.logits[:, -1].float()
            hidden = output.hidden_states[-1][:, -1]
            wants_score = self._head is not None and any(row.spec.scores for row in rows)
            scores = self._head(hidden.float()).tolist() if wants_score and self._head is not None else None
            wants_confidence = any(row.spec.confidence for row in rows)
            confidence = token_confidence(logits, self._top_k).tolist() if wants_confidence else None
            tokens = self._choose(rows, logits, sampling, warp)
            ended: dict[_Row, FinishReason] = {}
            for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                row.token_ids.append(token)
                if token in self._eos:
                    ended[row] = "stop"
                elif position + 1 == sampling.max_tokens:
                    ended[row] = "length"
                monitor.observe(
                    row,
                    position,
                    score=scores[i] if scores else None,
                    confidence=confidence[i] if confidence else None,
                    finished=row in ended,
                )
            for key in monitor.take_verdicts():
                assert isinstance(key, _Row)
                ended[key] = "pruned"
            for row, reason in ended.items():
                log = monitor.drop(row)
                assert log is not None
                yield make_trace(
                    self._tokenizer, row.question, row.sample_id, row.token_ids, reason, log.to_dict()
                )
            keep = [i for i, row in enumerate(rows) if row not in ended]
            if not keep:
                return
            if ended:
                index = torch.tensor(keep, device=self._device)
                cache.batch_select_indices(index)
                mask = mask[index]
                rows = [rows[i] for i in keep]
            inputs = torch.tensor([[row.token_ids[-1]] for row in rows], device=self._device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)

    def _choose(
        self, rows: list[_Row], logits: torch.Tensor, sampling: Sampling, warp: LogitsProcessorList
    ) -> list[int]:
        if sampling.temperature == 0:
            return list(logits.argmax(-1).tolist())
        probabilities = warp(None, logits).softmax(-1)  # type: ignore[arg-type]
        # Dividing by exponential noise and taking the largest samples from the distribution, with one
        # generator a row, so that a trace does not depend on its neighbours.
        noise = torch.stack([torch.empty(logits.shape[-1]).exponential_(generator=r.generator) for r in rows])
        return list((probabilities / noise.to(self._device)).argmax(-1).tolist())

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
