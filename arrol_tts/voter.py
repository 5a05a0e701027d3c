"""WeightedVoter: a question in, an answer out. Sample, prune early, vote."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from arrol_tts.errors import InputError
from arrol_tts.head_config import QualityHeadConfig, read_head_config, resolve_head
from arrol_tts.trace import Trace
from arrol_tts.voting import METHODS, Method, TokenLedger, VoteResult, resolve_method, vote

# What samples loads when somebody samples: importing arrol_tts is quick.
if TYPE_CHECKING:
    from typing import Unpack

    from arrol_tts.answers import Equality, PercentSign
    from arrol_tts.engine.base import Engine
    from arrol_tts.engine.load import EngineName
    from arrol_tts.events import Event
    from arrol_tts.plan import Asked, Questions, SampleOptions
    from arrol_tts.prompts import Prompt
    from arrol_tts.stopping import TraceSpec
    from arrol_tts.streams import Asking, Closing, EventStream

Extractor = Callable[[str], str | None]
OnTrace = Callable[[Trace], None]
SIGNALS = ("confidence", "scores", "self_certainty")
"""What engines record for voting methods."""
T = TypeVar("T")


class WeightedVoter:
    """Answers questions by a vote over parallel samples, weighted by a quality head.

    Args:
        engine: samples the questions; None when only ``vote`` is used.
        config: the head's config, whose positions, keep ratio, sampling and voting options are the
            defaults of every call.
        method: voting method, a name in ``METHODS`` or a function ``traces -> weights``.
        extract: reads the answer off a finished trace's text; None: ``extract_answer``.
        prompt: how questions are put to the model; None: as the head's config says.
        equality: what makes two answers one, see ``arrol_tts.vote``; None: as the head's config says, or ``math``.
        percent: what a per cent sign means, ``fraction`` or ``unit``; None: likewise, else ``fraction``.

    Raises:
        InputError: there is no such equality or reading of per cent signs.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        config: QualityHeadConfig | None = None,
        method: str | Method = "quality",
        extract: Extractor | None = None,
        prompt: Prompt | None = None,
        equality: Equality | None = None,
        percent: PercentSign | None = None,
    ) -> None:
        from arrol_tts.prompts import Prompt

        self.config = config
        self.method = method
        self.extract = extract or _extract_answer
        if prompt is None:
            prompt = Prompt() if config is None else Prompt.of_head(config)
        self.prompt = prompt
        self.equality: Equality = equality or (config.equality if config else "math")
        self.percent: PercentSign = percent or (config.percent if config else "fraction")
        if equality is not None or percent is not None:  # the config has checked its own
            from arrol_tts.answers import key_function

            key_function(self.equality, self.percent)
        self._engine = engine
        self._make_engine: Callable[[], Engine] | None = None
        self._loading = threading.Lock()

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
        extract: Extractor | None = None,
        prompt: Prompt | None = None,
        equality: Equality | None = None,
        percent: PercentSign | None = None,
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
            prompt: see the class.
            equality: see the class.
            percent: see the class.
            **engine_options: passed to the engine, e.g. ``tensor_parallel_size=2``.

        Raises:
            HeadError: when the head cannot be read, or is for a model of another hidden size.
        """
        from arrol_tts.engine.load import ENGINE_NAMES, load_engine

        if engine not in ENGINE_NAMES:
            raise InputError(f"engine is {engine!r}; it must be 'auto', 'vllm' or 'transformers'")
        folder = resolve_head(path_or_id, revision=revision)
        config = read_head_config(folder)
        if server is None and model is None:
            config.check_revision()
        elif server is None:
            from arrol_tts.engine.base import hidden_size_of

            config.check_model(hidden_size=hidden_size_of(model or config.base_model), model=model)
        voter = cls(
            config=config, method=method, extract=extract, prompt=prompt, equality=equality, percent=percent
        )
        voter._make_engine = lambda: load_engine(
            model, head=folder, engine=engine, server=server, **engine_options
        )
        return voter

    @property
    def engine(self) -> Engine:
        """The engine, loaded when first needed.

        Raises:
            InputError: when this voter has none.
        """
        with self._loading:  # questions that are asked at once load one engine
            if self._engine is None:
                if self._make_engine is None:
                    raise InputError(
                        "this voter has no language model: make it with WeightedVoter.from_pretrained(...) or "
                        "pass engine="
                    )
                self._engine = self._make_engine()
            return self._engine

    def solve(
        self,
        question: Asked,
        n: int = 32,
        *,
        method: str | Method | None = None,
        **options: Unpack[SampleOptions],
    ) -> VoteResult:
        """Sample a question n times, prune early, and vote.

        Args:
            question: what to ask: a text, or the messages of a chat in OpenAI's form. The head's prompt goes
                around what the user said last, see `arrol_tts.prompts.Prompt.ask`.
            n: traces to sample.
            method: voting method, by default the voter's.
            **options: see `SampleOptions`; pruning and recorded signals follow the method's needs.

        Returns:
            ``answer``, ``confidence``, ``table``, ``tokens`` and ``traces``.

        Raises:
            InputError: for an empty question, n < 1, an unknown method or option, or a detection position beyond
                max_tokens; before anything is generated.
        """
        method = self.method if method is None else method
        asking = self._ask("solve", [question], n, options, method)
        return self._votes(_exhausted(asking), method)[0]

    def solve_many(
        self,
        questions: Sequence[Asked] | Mapping[str, Asked],
        n: int = 32,
        *,
        method: str | Method | None = None,
        on_trace: OnTrace | None = None,
        **options: Unpack[SampleOptions],
    ) -> list[VoteResult]:
        """Answer several questions at once; their traces share the engine's batches.

        Args:
            questions: texts or conversations, as ``solve`` takes them, or ``{id: question}``.
            n: traces per question.
            method: voting method, by default the voter's.
            on_trace: called with every trace as it ends, answer included, for progress and storage.
            **options: as in ``solve``.

        Returns:
            One result per question, in order.

        Raises:
            InputError: as in ``solve``.
        """
        method = self.method if method is None else method
        asking = self._ask("solve_many", questions, n, options, method)
        return self._votes(_exhausted(asking, on_trace), method)

    async def asolve(
        self,
        question: Asked,
        n: int = 32,
        *,
        method: str | Method | None = None,
        **options: Unpack[SampleOptions],
    ) -> VoteResult:
        """``solve`` for asyncio: other tasks run meanwhile, and cancelling it aborts the sampling."""
        method = self.method if method is None else method
        results = await _outcome(
            lambda: self._ask("asolve", [question], n, options, method), lambda asking: self._votes(asking, method)
        )
        return results[0]

    async def asolve_many(
        self,
        questions: Sequence[Asked] | Mapping[str, Asked],
        n: int = 32,
        *,
        method: str | Method | None = None,
        on_trace: OnTrace | None = None,
        **options: Unpack[SampleOptions],
    ) -> list[VoteResult]:
        """``solve_many`` for asyncio; several calls at once share the engine's batches."""
        method = self.method if method is None else method
        return await _outcome(
            lambda: self._ask("asolve_many", questions, n, options, method),
            lambda asking: self._votes(asking, method),
            on_trace,
        )

    def stream(
        self,
        questions: Questions,
        n: int = 32,
        *,
        method: str | Method | None = None,
        every: float = 0.1,
        **options: Unpack[SampleOptions],
    ) -> Closing[Event]:
        """Watch questions being answered.

        Args:
            questions: a text or a conversation, several of them, or ``{id: question}``.
            n: traces per question.
            method: voting method, by default the voter's.
            every: seconds between reports of a trace's progress.
            **options: as in ``solve``; ``score_every`` asks for scores along the way.

        Returns:
            An iterator of ``Progress`` (a trace was written on), ``Ended`` (with its answer) and ``Voted`` (the
            vote so far; the last of a question is what ``solve`` returns). Closing it aborts the sampling.

        Raises:
            InputError: as in ``solve``, at once.
        """
        return self._stream("stream", questions, n, method, every, options)

    async def astream(
        self,
        questions: Questions,
        n: int = 32,
        *,
        method: str | Method | None = None,
        every: float = 0.1,
        **options: Unpack[SampleOptions],
    ) -> AsyncGenerator[Event, None]:
        """``stream`` for asyncio; leaving the loop over it, or cancelling, aborts the sampling."""
        events = _in_thread(lambda: self._stream("astream", questions, n, method, every, options))
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    def sample(
        self,
        questions: Sequence[Asked] | Mapping[str, Asked],
        n: int = 32,
        *,
        on_trace: OnTrace | None = None,
        **options: Unpack[SampleOptions],
    ) -> dict[str, list[Trace]]:
        """Sample without voting: sample once, vote many times.

        Args:
            questions: texts or conversations, as ``solve`` takes them, or ``{id: question}``.
            n: traces per question.
            on_trace: called with every trace as it ends, answer included, for progress and storage.
            **options: see `SampleOptions`; confidences, and scores where there is a head, are recorded unless
                declined.

        Returns:
            ``{question id: traces by sample id}``, in the order of the questions.

        Raises:
            InputError: for an empty question, n < 1, an unknown option or a detection position beyond max_tokens;
                before anything is generated.
        """
        return _groups(_exhausted(self._ask("sample", questions, n, options, None), on_trace))

    async def asample(
        self,
        questions: Sequence[Asked] | Mapping[str, Asked],
        n: int = 32,
        *,
        on_trace: OnTrace | None = None,
        **options: Unpack[SampleOptions],
    ) -> dict[str, list[Trace]]:
        """``sample`` for asyncio; several calls at once share the engine's batches."""
        return await _outcome(lambda: self._ask("asample", questions, n, options, None), _groups, on_trace)

    def vote(self, traces: Sequence[Trace], method: str | Method | None = None, **options: Any) -> VoteResult:
        """Vote over traces of one question, made here or anywhere.

        Args:
            traces: see ``arrol_tts.vote``.
            method: voting method, by default the voter's.
            **options: of ``arrol_tts.vote``, such as ``equality``, and of the method; by default the voter's and
                those that the head's config names.
        """
        method = self.method if method is None else method
        return vote(traces, method, **self._vote_options(method) | options)

    def close(self) -> None:
        """Free the language model."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _stream(
        self,
        call: str,
        questions: Questions,
        n: int,
        method: str | Method | None,
        every: float,
        options: SampleOptions,
    ) -> EventStream:
        from arrol_tts.streams import EventStream

        chosen = self.method if method is None else method
        asking = self._ask(call, questions, n, options, chosen, every)
        return EventStream(asking, lambda question_id: self._result(asking, question_id, chosen))

    def _votes(self, asking: Asking, method: str | Method) -> list[VoteResult]:
        return [self._result(asking, question_id, method) for question_id in asking.question_ids]

    def _result(self, asking: Asking, question_id: str, method: str | Method) -> VoteResult:
        """The vote over the traces of a question that have ended."""
        result = self.vote(asking.group(question_id), method, calibration=asking.plan.calibration)
        ledger = TokenLedger.of(result.traces, asking.unstarted(question_id))
        return replace(result, tokens=ledger)

    def _vote_options(self, method: str | Method) -> dict[str, Any]:
        return {"equality": self.equality, "percent": self.percent, **self._options(method)}

    def _options(self, method: str | Method) -> dict[str, Any]:
        if self.config is None or not isinstance(method, str):
            return {}
        return dict(self.config.voting.get(method, {}))

    def _needs(self, method: str | Method) -> tuple[str, ...]:
        """The signals that a method reads; those of a function are not known."""
        resolve_method(method, self._options(method))
        if not isinstance(method, str):
            return ("scores", "confidence")
        needs = METHODS[method].needs
        if "scores" in needs and self._engine is not None and self.config is None:
            raise InputError(
                f"method {method!r} needs a quality head: make the voter with from_pretrained(...), or choose a "
                "method without one, such as 'majority' or 'deepconf'"
            )
        if unknown := [signal for signal in needs if signal not in SIGNALS]:
            raise InputError(
                f"method {method!r} needs {unknown[0]!r}, which no engine records (they record "
                f"{', '.join(SIGNALS)}): sample first, add it to the traces, and vote on them"
            )
        return needs

    def _check_signals(self, method: str | Method, spec: TraceSpec) -> None:
        """Refuse waves whose vote reads what is not recorded: it would fail at the end of the first."""
        recorded = {
            "scores": spec.score_finish,
            "confidence": spec.confidence or bool(spec.confidence_window),
            "self_certainty": spec.self_certainty,
        }
        lacking = [signal for signal in self._needs(method) if not recorded[signal]]
        if isinstance(method, str) and lacking:
            raise InputError(
                f"waves go on by votes of {method!r}, which reads {lacking[0]}: record it with {lacking[0]}=True"
            )

    def _ask(
        self,
        call: str,
        questions: Questions,
        n: int,
        options: SampleOptions,
        method: str | Method | None,
        every: float | None = None,
    ) -> Asking:
        """Set a public call to work, recording what its vote reads; without one, all signals but the costly."""
        from arrol_tts.engine.request import check_request
        from arrol_tts.plan import check_options, make_plan
        from arrol_tts.streams import Asking

        check_options(call, options)
        needs = None if method is None else self._needs(method)
        plan = make_plan(questions, n, options, config=self.config, prompt=self.prompt, needs=needs)
        method = self.method if method is None else method
        if plan.waves is not None:
            self._check_signals(method, plan.spec)
        if plan.calibration is not None:
            plan.calibration.check(resolve_method(method, {})[0])
        if self._engine is None:
            # The engine checks again what it is asked; here it is not worth loading for what cannot work.
            check_request(plan.questions, plan.sampling, plan.spec, has_head=self.config is not None)
        consensus, waves, calibration = plan.consensus, plan.waves, plan.calibration
        decide = partial(self.vote, method=method)

        def reached(traces: list[Trace]) -> str:
            return consensus.reached(traces, **self._vote_options(consensus.method)) if consensus else ""

        def more(traces: list[Trace]) -> int:
            return waves.more(traces, n, decide, calibration=calibration) if waves else 0

        return Asking(lambda: self.engine, plan, extract=self.extract, reached=reached, more=more, every=every)


def _exhausted(asking: Asking, on_trace: OnTrace | None = None) -> Asking:
    """The call, once all its traces have ended."""
    with contextlib.closing(asking):
        for item in asking:
            if on_trace is not None and isinstance(item, Trace):
                on_trace(item)
    return asking


async def _outcome(
    ask: Callable[[], Asking], outcome: Callable[[Asking], T], on_trace: OnTrace | None = None
) -> T:
    """What comes of a call; neither making it nor working the outcome out holds up the event loop."""
    from arrol_tts.streams import Outcome

    found: list[T] = []
    items = _in_thread(lambda: Outcome(ask(), outcome, traces=on_trace is not None))
    async with contextlib.aclosing(items):
        async for item in items:
            if not isinstance(item, Trace):
                found.append(item)
            elif on_trace is not None:
                on_trace(item)
    return found[0]


def _groups(asking: Asking) -> dict[str, list[Trace]]:
    return {question_id: asking.group(question_id) for question_id in asking.question_ids}


def _extract_answer(text: str) -> str | None:
    from arrol_tts.answers import extract_answer  # not at the top: importing arrol_tts is quick

    return extract_answer(text)


def _in_thread(make: Callable[[], Closing[T]]) -> AsyncGenerator[T, None]:
    from arrol_tts.in_thread import in_thread  # loads asyncio

    return in_thread(make)
