"""WeightedVoter: a question in, an answer out. Sample, prune early, vote."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from arrol_tts.answers import extract_answer
from arrol_tts.consensus import Consensus
from arrol_tts.engine.request import Question, Sampling, check_request, never_stop
from arrol_tts.events import Event, Progress
from arrol_tts.head_config import QualityHeadConfig, read_head_config, resolve_head
from arrol_tts.prompts import Prompt
from arrol_tts.stopping import KeepShare, Rule, TraceSpec
from arrol_tts.streams import Closing, EventStream, Mapped, in_thread, nothing
from arrol_tts.trace import Trace
from arrol_tts.voting import METHODS, Method, VoteResult, resolve_method, vote

if TYPE_CHECKING:
    from pathlib import Path

    from arrol_tts.engine.base import Engine

EngineName = Literal["auto", "vllm", "transformers"]
Extractor = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class _Plan:
    questions: list[Question]
    sampling: Sampling
    spec: TraceSpec
    consensus: Consensus | None
    every: float | None


class WeightedVoter:
    """Answers questions by a vote over parallel samples, weighted by a quality head.

    Args:
        engine: samples the questions; None when only ``vote`` is used.
        config: the head's config, whose positions, keep ratio, sampling and voting options are the
            defaults of every call.
        method: voting method, a name in ``METHODS`` or a function ``traces -> weights``.
        extract: reads the answer off a finished trace's text.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        config: QualityHeadConfig | None = None,
        method: str | Method = "quality",
        extract: Extractor = extract_answer,
    ) -> None:
        self.config = config
        self.method = method
        self.extract = extract
        self._engine = engine
        self._make_engine: Callable[[], Engine] | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        model: str | None = None,
        engine: EngineName = "auto",
        server: str | Sequence[str] | None = None,
        revision: str | None = None,
        method: str | Method = "quality",
        extract: Extractor = extract_answer,
        **engine_options: Any,
    ) -> WeightedVoter:
        """A voter from a quality head; the language model loads when the first question is asked.

        Args:
            path_or_id: folder or hub id of a head, or ``"pocket"`` for the built-in one (synthetic).
            model: language model to use instead of the one that the head names.
            engine: ``"vllm"``, ``"transformers"``, or ``"auto"``: vLLM where it is installed.
            server: base URLs of servers that were started with this head (``docs/serving.md``); then nothing
                is loaded here, and ``model`` is the name they serve the model under.
            revision: commit, branch or tag of the head on the hub.
            method: see the class.
            extract: see the class.
            **engine_options: passed to the engine, e.g. ``tensor_parallel_size=2``.

        Raises:
            HeadError: when the head cannot be read, or is for a model of another hidden size.
        """
        if engine not in ("auto", "vllm", "transformers"):
            raise ValueError(f"engine is {engine!r}; it must be 'auto', 'vllm' or 'transformers'")
        folder = resolve_head(path_or_id, revision=revision)
        config = read_head_config(folder)
        base_model = model or config.base_model
        if server is None and model is None:
            config.check_revision()
        elif server is None:
            from arrol_tts.engine.base import hidden_size_of

            config.check_model(hidden_size=hidden_size_of(base_model), model=base_model)
        voter = cls(config=config, method=method, extract=extract)
        if server is None:
            voter._make_engine = lambda: load_engine(base_model, folder, config, engine, engine_options)
        else:
            from arrol_tts.engine.server_engine import ServerEngine

            options: dict[str, Any] = {"model": model, "head": folder, "top_k": config.engine.get("top_k")}
            options |= engine_options
            voter._make_engine = lambda: ServerEngine(server, **options)
        return voter

    @property
    def engine(self) -> Engine:
        """The engine, loaded when first needed.

        Raises:
            ValueError: when this voter has none.
        """
        if self._engine is None:
            if self._make_engine is None:
                raise ValueError(
                    "this voter has no language model: make it with WeightedVoter.from_pretrained(...) or "
                    "pass engine="
                )
            self._engine = self._make_engine()
        return self._engine

    def solve(self, question: str, n: int = 32, **options: Any) -> VoteResult:
        """Sample a question n times, prune early, and vote.

        Args:
            question: what to ask.
            n: traces to sample.
            **options: as in ``solve_many``.

        Returns:
            ``answer``, ``confidence``, ``table``, ``tokens`` and ``traces``.

        Raises:
            ValueError: for an empty question, n < 1, an unknown method or a detection position beyond
                max_tokens; before anything is generated.
        """
        return self.solve_many([question], n, **options)[0]

    def solve_many(
        self,
        questions: Sequence[str] | Mapping[str, str],
        n: int = 32,
        *,
        method: str | Method | None = None,
        **options: Any,
    ) -> list[VoteResult]:
        """Answer several questions at once; their traces share the engine's batches.

        Args:
            questions: texts, or ``{id: text}``.
            n: traces per question.
            method: voting method, by default the voter's.
            **options: as in ``sample``; pruning and confidences follow the method's needs.

        Returns:
            One result per question, in order.

        Raises:
            ValueError: as in ``solve``.
        """
        method = self.method if method is None else method
        options = self._needed_by(method, options)
        return [self.vote(group, method=method) for group in self.sample(questions, n, **options).values()]

    async def asolve(self, question: str, n: int = 32, **options: Any) -> VoteResult:
        """``solve`` for asyncio: other tasks run meanwhile, and cancelling it aborts the sampling."""
        return (await self.asolve_many([question], n, **options))[0]

    async def asolve_many(
        self,
        questions: Sequence[str] | Mapping[str, str],
        n: int = 32,
        *,
        method: str | Method | None = None,
        **options: Any,
    ) -> list[VoteResult]:
        """``solve_many`` for asyncio; several calls at once share the engine's batches."""
        method = self.method if method is None else method
        plan = self._plan(questions, n, **self._needed_by(method, options))
        groups: dict[str, list[Trace]] = {question.id: [] for question in plan.questions}
        async for trace in in_thread(self._run(plan)):
            if isinstance(trace, Trace):
                groups[trace.question_id].append(trace)
        return [self.vote(_by_sample(group), method=method) for group in groups.values()]

    def stream(
        self,
        questions: str | Sequence[str] | Mapping[str, str],
        n: int = 32,
        *,
        method: str | Method | None = None,
        every: float = 0.1,
        **options: Any,
    ) -> Closing[Event]:
        """Watch questions being answered.

        Args:
            questions: a text, texts, or ``{id: text}``.
            n: traces per question.
            method: voting method, by default the voter's.
            every: seconds between reports of a trace's progress.
            **options: as in ``sample``; pruning and confidences follow the method's needs. ``score_every``
                asks for scores along the way.

        Returns:
            An iterator of ``Progress`` (a trace was written on), ``Ended`` (with its answer) and ``Voted`` (the
            vote so far; the last of a question is what ``solve`` returns). Closing it aborts the sampling.

        Raises:
            ValueError: as in ``solve``, at once.
        """
        method = self.method if method is None else method
        plan = self._plan(
            [questions] if isinstance(questions, str) else questions,
            n,
            every=every,
            **self._needed_by(method, options),
        )
        return EventStream(self._run(plan), lambda traces: self.vote(_by_sample(traces), method=method), n)

    async def astream(
        self, questions: str | Sequence[str] | Mapping[str, str], n: int = 32, **options: Any
    ) -> AsyncIterator[Event]:
        """``stream`` for asyncio; leaving the loop over it, or cancelling, aborts the sampling."""
        async for event in in_thread(self.stream(questions, n, **options)):
            yield event

    def sample(
        self,
        questions: Sequence[str] | Mapping[str, str],
        n: int = 32,
        *,
        on_trace: Callable[[Trace], None] | None = None,
        **options: Any,
    ) -> dict[str, list[Trace]]:
        """Sample without voting: sample once, vote many times.

        Args:
            questions: texts, or ``{id: text}``.
            n: traces per question.
            on_trace: called with every trace as it ends, answer included, for progress and storage.

        Options:
            keep: share of a question's traces to keep at the detection position, by default the head's;
                1 prunes nothing.
            at: detection position in generated tokens; by default the head's first.
            temperature: sampling temperature; by default the head's, else 1.
            top_p: nucleus share; by default the head's, else 1.
            max_tokens: limit on a trace; by default the head's, else 1024.
            stop: texts that end a trace, such as the next question that a base model would go on with; by default
                the head's, else none.
            seed: of the sampling.
            confidence: record DeepConf's token confidences.
            confidence_window: record DeepConf's measures over windows of this many tokens, in place of every
                token's confidence: a few numbers a trace, enough for DeepConf's votes with that window.
            scores: record the head's scores; without them nothing but majority and confidence can vote.
            score_every: record them at every multiple of this many tokens too.
            rules: more stopping rules of the engine, beside the keep ratio.
            consensus: when a question needs no more traces; its others are cancelled then.
            chat: send questions through the model's chat template, where it has one; False sends the text as it
                is, such as a few-shot prompt for a base model.
            samples: ``{id: numbers}`` of the traces to sample, where not all n of a question are wanted: to go on
                with an interrupted run. Not together with rules that compare a question's traces.

        Returns:
            ``{question id: traces by sample id}``, in the order of the questions.

        Raises:
            ValueError: for an empty question, n < 1 or a detection position beyond max_tokens; before
                anything is generated.
        """
        plan = self._plan(questions, n, **options)
        traces: dict[str, list[Trace]] = {question.id: [] for question in plan.questions}
        with contextlib.closing(self._run(plan)) as items:
            for trace in items:
                assert isinstance(trace, Trace)
                traces[trace.question_id].append(trace)
                if on_trace is not None:
                    on_trace(trace)
        return {question_id: _by_sample(group) for question_id, group in traces.items()}

    def vote(self, traces: Sequence[Trace], method: str | Method | None = None, **options: Any) -> VoteResult:
        """Vote over traces of one question, made here or anywhere.

        Args:
            traces: see ``arrol_tts.vote``.
            method: voting method, by default the voter's.
            **options: of ``arrol_tts.vote`` and of the method; by default those the head's config names.
        """
        method = self.method if method is None else method
        return vote(traces, method, **self._options(method) | options)

    def close(self) -> None:
        """Free the language model."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _options(self, method: str | Method) -> dict[str, Any]:
        if self.config is None or not isinstance(method, str):
            return {}
        return dict(self.config.voting.get(method, {}))

    def _needed_by(self, method: str | Method, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a call, with the signals that its method reads, and no others, where none are named."""
        resolve_method(method, self._options(method))
        needs = METHODS[method].needs if isinstance(method, str) else ("scores", "confidence")
        if isinstance(method, str) and "scores" in needs and self._engine is not None and self.config is None:
            raise ValueError(
                f"method {method!r} needs a quality head: make the voter with from_pretrained(...), or choose a "
                "method without one, such as 'majority' or 'deepconf'"
            )
        defaults: dict[str, Any] = {"confidence": "confidence" in needs and not options.get("confidence_window")}
        if "scores" not in needs:
            defaults |= {"keep": 1.0, "scores": bool(options.get("score_every"))}
        return defaults | options

    def _plan(
        self,
        questions: Sequence[str] | Mapping[str, str],
        n: int,
        *,
        keep: float | None = None,
        at: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] | None = None,
        seed: int = 0,
        confidence: bool = True,
        confidence_window: int = 0,
        scores: bool = True,
        score_every: int = 0,
        rules: Sequence[Rule] = (),
        consensus: Consensus | None = None,
        chat: bool = True,
        samples: Mapping[str, Sequence[int]] | None = None,
        every: float | None = None,
    ) -> _Plan:
        """A call's options with the head's defaults, refused here when they cannot work."""
        if not isinstance(questions, Mapping):
            questions = {f"q{i}": text for i, text in enumerate(questions)}
        defaults: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 1024}
        defaults |= self.config.sampling if self.config else {}
        given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "stop": stop}
        sampling = Sampling(n=n, seed=seed, **defaults | {k: v for k, v in given.items() if v is not None})
        rules = tuple(rules)
        score_at: tuple[int, ...] = ()
        if self.config is None:
            if keep not in (None, 1) or at is not None:
                raise ValueError("pruning needs a quality head: make the voter with from_pretrained(...)")
            scores = False
        else:
            position = self.config.positions[0] if at is None else at
            share = self.config.keep if keep is None else keep
            score_at = (position,) if scores else ()
            rules = (KeepShare(position, share), *rules) if share != 1 else rules
        spec = TraceSpec(
            score_at=score_at,
            score_every=score_every,
            score_finish=scores,
            confidence=confidence and not confidence_window,
            confidence_window=confidence_window,
            rules=rules,
        )
        wanted = {question_id: tuple(numbers) for question_id, numbers in (samples or {}).items()}
        prompt = Prompt.from_messages(self.config.prompt if self.config else ())
        asked = [
            prompt.ask(question_id, text, chat=chat, samples=wanted.get(question_id))
            for question_id, text in questions.items()
        ]
        check_request(asked, sampling, spec, has_head=self.config is not None)
        return _Plan(asked, sampling, spec, consensus, every)

    def _run(self, plan: _Plan) -> Closing[Progress | Trace]:
        """Sample by a plan; finished traces have their answers."""
        traces: dict[str, list[Trace]] = {question.id: [] for question in plan.questions}

        def read(item: Progress | Trace) -> Progress | Trace:
            if isinstance(item, Trace) and item.finish_reason == "stop" and item.answer is None:
                item.answer = self.extract(item.text)
            return item

        def stop_question(trace: Trace) -> str:
            assert plan.consensus is not None
            read(trace)
            group = traces[trace.question_id]
            group.append(trace)
            return plan.consensus.reached(group, **self._options(plan.consensus.method))

        stop = never_stop if plan.consensus is None else stop_question
        if not plan.questions:
            return nothing()
        if plan.every is None:
            return Mapped(self.engine.sample(plan.questions, plan.sampling, plan.spec, stop_question=stop), read)
        return Mapped(
            self.engine.stream(plan.questions, plan.sampling, plan.spec, stop_question=stop, every=plan.every),
            read,
        )


def _by_sample(traces: Sequence[Trace]) -> list[Trace]:
    return sorted(traces, key=lambda trace: trace.sample_id)


def load_engine(
    model: str,
    head: Path | None,
    config: QualityHeadConfig | None,
    engine: EngineName,
    options: Mapping[str, Any],
) -> Engine:
    """Load an engine with a head in it.

    Args:
        model: path or hub id of the language model.
        head: local folder of the head, None for none.
        config: its config.
        engine: which; ``"auto"`` is vLLM where it is installed.
        options: of the engine; the config's own (``top_k``) come first.

    Raises:
        ImportError: when the engine is not installed, saying what to install.
    """
    options = {**(config.engine if config else {}), **options}
    if engine == "auto":
        engine = "vllm" if importlib.util.find_spec("vllm") is not None else "transformers"
    if importlib.util.find_spec(engine) is None:
        raise ImportError(
            f"a language model needs {engine}, which is not installed: pip install 'arrol[cpu]' (vLLM without a "
            "GPU), 'arrol[vllm]' or 'arrol[transformers]'; votes over recorded traces need none of them"
        )
    if engine == "vllm":
        from arrol_tts.engine.vllm_engine import VLLMEngine

        return VLLMEngine(model, head=head, **options)
    from arrol_tts.engine.transformers_engine import TransformersEngine
    from arrol_tts.head import QualityHead

    return TransformersEngine(model, head=QualityHead.from_pretrained(head) if head else None, **options)
