"""The reference engine: plain transformers in lockstep, for laptops without vLLM and for comparisons."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from arrol_tts.engine.base import DEFAULT_TOP_K, Engine, Run
from arrol_tts.engine.handover import named_heads
from arrol_tts.engine.signals import HeadReader, HeadReading, self_certainty, token_confidence
from arrol_tts.engine.stop_texts import StopTexts, Watched
from arrol_tts.engine.transformers_logits import Distribution
from arrol_tts.errors import EngineError, InputError
from arrol_tts.events import Progress
from arrol_tts.head import QualityHead
from arrol_tts.prompts import prompt_ids
from arrol_tts.stopping import Monitor, TraceSpec
from arrol_tts.trace import FinishReason, Trace

if TYPE_CHECKING:
    from arrol_tts.engine.handover import Heads, HeadSource
    from arrol_tts.engine.request import Question, Request, Sampling


@dataclass(eq=False, slots=True)
class _Row:
    question: Question
    sample_id: int
    spec: TraceSpec
    prompt: list[int]
    opened: bool
    generator: torch.Generator
    token_ids: list[int]
    stops: Watched | None
    reported: int = 0


class _Run(Run):
    """A request whose traces are computed while they are waited for."""

    def __init__(self, engine: TransformersEngine, request: Request) -> None:
        self._stopped: dict[str, str] = {}
        self._asked: deque[tuple[Question, TraceSpec]] = deque()
        self.add(request)
        self._items = engine._sample(request, self._asked, self._stopped)

    def __next__(self) -> Trace | Progress:
        return next(self._items)

    def add(self, request: Request) -> None:
        self._asked += zip(request.questions, request.specs, strict=True)

    def cancel(self, question_id: str, why: str) -> None:
        self._stopped.setdefault(question_id, why)

    def close(self) -> None:
        self._items.close()


class TransformersEngine(Engine):
    """Samples with a transformers model, all traces of a batch one token at a time.

    Args:
        model: path or hub id of a causal language model.
        head: folder or hub id of a quality head, ``"pocket"``, or the head itself; or several by name (a spec's
            ``head`` says which one scores, "" is the default); None for sampling without scores.
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
        head: Heads = None,
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
        self._readers: dict[str, HeadReader] = {}
        for name, each in named_heads(head).items():
            self.load_head(each, name)
        self._running: set[int] = set()
        self._stop_texts = StopTexts(self._tokenizer)
        self._decoder = self._stop_texts.decoder
        self._top_k = top_k
        self._batch_size = batch_size
        eos = self._lm.generation_config.eos_token_id
        self._eos = set(eos if isinstance(eos, list) else [] if eos is None else [eos])

    @property
    def heads(self) -> Collection[str]:
        """See ``Engine.heads``."""
        return self._readers.keys()

    def load_head(self, head: HeadSource, name: str = "") -> None:
        """See ``Engine.load_head``."""
        loaded = head if isinstance(head, QualityHead) else QualityHead.from_pretrained(head)
        loaded.config.check_model(hidden_size=self.hidden_size, model=self.model)
        self._readers[name] = HeadReader(loaded.to(self._device).eval())

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]] | str | Path) -> None:
        """See ``Engine.load_weights``."""
        if self._running:
            raise EngineError("traces are being sampled: load new weights when they have ended")
        if isinstance(weights, (str, Path)):
            from safetensors.torch import load_file

            weights = load_file(weights).items()
        tied = set(self._lm._tied_weights_keys or ())
        # Copies: where weights are the trainer's own, they may change as soon as the next ones are asked for.
        copies = {name: tensor.clone() for name, tensor in weights}
        try:
            missing, unexpected = self._lm.load_state_dict(copies, strict=False)
        except RuntimeError as error:  # of another shape
            raise InputError(f"the weights do not fit the engine's model: {error}") from error
        if unexpected or set(missing) - tied:
            names = [*unexpected, *(set(missing) - tied)][:5]
            raise InputError(
                f"the weights do not fit the engine's model ({', '.join(names)}): load the engine again, and push "
                "all weights of the same architecture under the names of its checkpoint"
            )

    def check(self, questions: Sequence[Question], sampling: Sampling, spec: TraceSpec) -> None:
        """See ``Engine.check``."""
        super().check(questions, sampling, spec)
        for question in questions:
            for name in question.request_fields:
                raise InputError(
                    f"the transformers engine has no {name}: leave it out of request_fields, or serve the model "
                    "with vLLM and pass server="
                )

    def _start(self, request: Request) -> Run:
        return _Run(self, request)

    def _sample(
        self, request: Request, asked: deque[tuple[Question, TraceSpec]], stopped: Mapping[str, str]
    ) -> Generator[Progress | Trace, None, None]:
        """Sample batch by batch.

        Args:
            request: how to sample.
            asked: what to sample; more may come while a batch is computed, and go into later ones.
            stopped: questions that need no more traces, and why; asked at every step.
        """
        sampling = request.sampling
        self._running.add(id(request))
        try:
            while asked:
                rows: list[_Row] = []
                while asked and (not rows or len(rows) + len(asked[0][0].wanted(sampling.n)) <= self._batch_size):
                    question, spec = asked.popleft()
                    prompt = prompt_ids(self._tokenizer, question)
                    opened = self._decoder.opens_thinking(prompt)
                    for sample_id in question.wanted(sampling.n):
                        generator, seed = torch.Generator(), sampling.seed_of(question.id, sample_id)
                        generator.seed() if seed is None else generator.manual_seed(seed)
                        stops = self._stop_texts.watch(spec.stop, sampling.min_tokens) if spec.stop else None
                        rows.append(_Row(question, sample_id, spec, prompt, opened, generator, [], stops))
                yield from self._decode(rows, sampling, stopped, request.every)
        finally:
            self._running.discard(id(request))

    def _decode(
        self, rows: list[_Row], sampling: Sampling, stopped: Mapping[str, str], every: float | None
    ) -> Iterator[Progress | Trace]:
        """Sample rows to their ends; those that wait for their group follow in a later wave."""
        monitor = Monitor()
        for row in rows:
            monitor.add(row, row.spec).thinking = row.opened or None
        unfinished = dict.fromkeys(rows)
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
                detail = stopped[row.question.id] if reason == "cancelled" else ""
                text, opened = self._decoder(row.token_ids), row.opened
                trace = log.to_trace(
                    row.question.id, row.sample_id, text, row.token_ids, reason, detail, opened=opened
                )
                trace.prompt_tokens, trace.cached_tokens = len(row.prompt), 0
                yield trace

    @torch.inference_mode()
    def _wave(
        self,
        rows: list[_Row],
        sampling: Sampling,
        monitor: Monitor,
        stopped: Mapping[str, str],
        every: float | None,
    ) -> Iterator[tuple[_Row, FinishReason] | Progress]:
        """Run rows in lockstep until each has ended or waits; names the ended, of this wave or not."""
        yield from ((row, "pruned") for row in _pruned(monitor))
        yield from ((row, "cancelled") for row in rows if row.question.id in stopped)
        rows = [row for row in rows if row in monitor.logs]
        if not rows:
            return
        distribution = Distribution(sampling, self._eos)
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
            ended = self._step(rows, output, distribution, monitor)
            ended |= dict.fromkeys(_pruned(monitor), "pruned")
            if every is not None and time.monotonic() - reported >= every:
                yield from (self._progress(row, monitor) for row in rows if row not in ended)
                reported = time.monotonic()
            yield from ended.items()
            yield from ((row, "cancelled") for row in rows if row not in ended and row.question.id in stopped)
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

    def _step(
        self, rows: list[_Row], output: Any, distribution: Distribution, monitor: Monitor
    ) -> dict[_Row, FinishReason]:
        """Read a step's signals, draw each row's next token, tell the Monitor; returns the rows that end."""
        sampling = distribution.sampling
        logits = output.logits[:, -1].float()
        confidence = certainty = logprobs = None
        scored = {row.spec.head for row in rows if monitor.logs[row].wants_scores}
        hidden = output.hidden_states[-1][:, -1].float()
        readings = {
            name: HeadReading.of(self._readers[name](hidden).tolist(), self._readers[name].kind) for name in scored
        }
        if any(monitor.logs[row].wants_confidence for row in rows):
            confidence = token_confidence(logits, self._top_k).tolist()
        if any(monitor.logs[row].wants_certainty for row in rows):
            certainty = self_certainty(logits).tolist()
        states = None
        if any(monitor.logs[row].wants_features for row in rows):
            states = hidden.cpu().numpy()
        logits = distribution(logits, [row.prompt for row in rows], [row.token_ids for row in rows])
        tokens = self._choose(rows, logits, sampling)
        if any(row.spec.logprobs for row in rows):
            chosen = torch.tensor(tokens, device=self._device)[:, None]
            logprobs = logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
        ended: dict[_Row, FinishReason] = {}
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            position = len(row.token_ids)
            row.token_ids.append(token)
            log = monitor.logs[row]
            reading = readings[row.spec.head] if log.wants_scores else None
            if token in distribution.ends:
                ended[row] = "stop"
            elif (
                row.stops is not None
                and (text := row.stops.add(token))
                and not self._decoder.is_thinking(log, row.token_ids)
            ):
                ended[row], log.stop_text = "stop", text
            elif position + 1 == sampling.max_tokens:
                ended[row] = "length"
            if certainty is not None and log.wants_certainty:
                log.certainty += certainty[i]
            written = row.token_ids[-2] if position else None
            monitor.observe(
                row,
                position,
                score=None if reading is None else reading.score(i, position, log, written),
                confidence=confidence[i] if confidence else None,
                logprob=logprobs[i] if logprobs and row.spec.logprobs else None,
                token=written,
                feature=states[i].tobytes if states is not None else None,
                finished=row in ended,
            )
        return ended

    def _progress(self, row: _Row, monitor: Monitor) -> Progress:
        text = self._decoder(row.token_ids)
        news = monitor.logs[row].take_news() or {}
        scores = {k: score for k, score in news.get("scores", ()) if score is not None}
        new_text, row.reported = text[row.reported :], len(text)
        return Progress(row.question.id, row.sample_id, len(row.token_ids), new_text, scores)

    def _choose(self, rows: list[_Row], logits: torch.Tensor, sampling: Sampling) -> list[int]:
        """The next token of each row."""
        if sampling.temperature == 0:
            return list(logits.argmax(-1).tolist())
        # Dividing by exponential noise and taking the largest samples from the distribution, with one
        # generator a row, so that a trace does not depend on its neighbours.
        noise = torch.stack([torch.empty(logits.shape[-1]).exponential_(generator=r.generator) for r in rows])
        return list((logits.softmax(-1) / noise.to(self._device)).argmax(-1).tolist())

    def close(self) -> None:
        """See ``Engine.close``."""
        self._lm = None


def _pruned(monitor: Monitor) -> list[_Row]:
    for error in monitor.take_failures().values():
        raise error
    return [key for key in monitor.take_verdicts() if isinstance(key, _Row)]
