"""WeightedVoter: a question in, an answer out. Sample, prune early, vote."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from arrol_tts.answers import extract_answer
from arrol_tts.consensus import Consensus
from arrol_tts.engine.base import Question, Sampling, check_request
from arrol_tts.head_config import QualityHeadConfig, read_head_config, resolve_head
from arrol_tts.stopping import KeepShare, Rule, TraceSpec
from arrol_tts.voting import METHODS, Method, VoteResult, resolve_method, vote

if TYPE_CHECKING:
    from pathlib import Path

    from arrol_tts.engine.base import Engine
    from arrol_tts.trace import Trace

EngineName = Literal["auto", "vllm", "transformers"]
Extractor = Callable[[str], str | None]


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
        if model is not None and server is None:
            from arrol_tts.engine.base import hidden_size_of

            config.check_model(hidden_size=hidden_size_of(model), model=model)
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
        resolve_method(method, self._options(method))
        needs = METHODS[method].needs if isinstance(method, str) else ("scores", "confidence")
        if isinstance(method, str) and "scores" in needs and self._engine is not None and self.config is None:
            raise ValueError(
                f"method {method!r} needs a quality head: make the voter with from_pretrained(...), or choose a "
                "method without one, such as 'majority' or 'deepconf'"
            )
        if "scores" not in needs:
            options.setdefault("keep", 1.0)
            options.setdefault("scores", False)
        options.setdefault("confidence", "confidence" in needs)
        return [self.vote(group, method=method) for group in self.sample(questions, n, **options).values()]

    def sample(
        self,
        questions: Sequence[str] | Mapping[str, str],
        n: int = 32,
        *,
        keep: float | None = None,
        at: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        confidence: bool = True,
        scores: bool = True,
        rules: Sequence[Rule] = (),
        consensus: Consensus | None = None,
        on_trace: Callable[[Trace], None] | None = None,
    ) -> dict[str, list[Trace]]:
        """Sample without voting: sample once, vote many times.

        Args:
            questions: texts, or ``{id: text}``.
            n: traces per question.
            keep: share of a question's traces to keep at the detection position, by default the head's;
                1 prunes nothing.
            at: detection position in generated tokens; by default the head's first.
            temperature: sampling temperature; by default the head's, else 1.
            top_p: nucleus share; by default the head's, else 1.
            max_tokens: limit on a trace; by default the head's, else 1024.
            seed: of the sampling.
            confidence: record DeepConf's token confidences.
            scores: record the head's scores; without them nothing but majority and confidence can vote.
            rules: more stopping rules of the engine, beside the keep ratio.
            consensus: when a question needs no more traces; its others are cancelled then.
            on_trace: called with every trace as it ends, answer included, for progress and storage.

        Returns:
            ``{question id: traces by sample id}``, in the order of the questions.

        Raises:
            ValueError: for an empty question, n < 1 or a detection position beyond max_tokens; before
                anything is generated.
        """
        if not isinstance(questions, Mapping):
            questions = {f"q{i}": text for i, text in enumerate(questions)}
        defaults: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 1024}
        defaults |= self.config.sampling if self.config else {}
        given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        sampling = Sampling(n=n, seed=seed, **defaults | {k: v for k, v in given.items() if v is not None})
        spec = self._spec(keep, at, confidence, scores, tuple(rules))
        asked = [Question(question_id, text) for question_id, text in questions.items()]
        check_request(asked, sampling, spec, has_head=self.config is not None)
        traces: dict[str, list[Trace]] = {question.id: [] for question in asked}

        def ended(trace: Trace) -> str:
            if trace.finish_reason == "stop":
                trace.answer = self.extract(trace.text)
            traces[trace.question_id].append(trace)
            if on_trace is not None:
                on_trace(trace)
            if consensus is None:
                return ""
            return consensus.reached(traces[trace.question_id], **self._options(consensus.method))

        for trace in self.engine.sample(asked, sampling, spec, stop_question=ended) if asked else ():
            if trace.finish_reason == "cancelled":
                ended(trace)
        for group in traces.values():
            group.sort(key=lambda trace: trace.sample_id)
        return traces

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

    def _spec(
        self, keep: float | None, at: int | None, confidence: bool, scores: bool, rules: tuple[Rule, ...]
    ) -> TraceSpec:
        if self.config is None:
            if keep not in (None, 1) or at is not None:
                raise ValueError("pruning needs a quality head: make the voter with from_pretrained(...)")
            return TraceSpec(confidence=confidence, rules=rules)
        position = self.config.positions[0] if at is None else at
        share = self.config.keep if keep is None else keep
        if share != 1:
            rules = (KeepShare(position, share), *rules)
        score_at = (position,) if scores else ()
        return TraceSpec(score_at=score_at, score_finish=scores, confidence=confidence, rules=rules)


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
