"""Plan: what a call of WeightedVoter asks of an engine.

The options of the call come first, then the head's own defaults, then those of `Sampling` and `TraceSpec`, where
each is written once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

from arrol_tts.engine.request import Question, Sampling
from arrol_tts.errors import InputError, OptionError
from arrol_tts.messages import Message
from arrol_tts.stopping import KeepShare, Rule, Threshold, TraceSpec
from arrol_tts.waves import Waves

if TYPE_CHECKING:
    from arrol_tts.calibration import AnswerCalibration
    from arrol_tts.consensus import Consensus
    from arrol_tts.head_config import QualityHeadConfig
    from arrol_tts.prompts import Prompt

Asked = str | Sequence[Message]
"""One question: a text, or the messages of a chat, ``{"role": ..., "content": ...}``, which the answer follows."""

Questions = Asked | Sequence[Asked] | Mapping[str, Asked]
"""A question, questions, or ``{id: question}``."""


class SamplingOptions(TypedDict, total=False):
    """How to sample; what is left out, or None, is the head's own, else the default of `Sampling`.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus share in (0, 1].
        top_k: tokens to choose among; 0 is off.
        min_p: tokens less likely than this share of the likeliest one are left out; 0 is off.
        repetition_penalty: divides the logits of tokens that the prompt or the trace has; 1 is off.
        presence_penalty: taken off the logits of tokens that the trace has; 0 is off.
        frequency_penalty: taken off them for every time that the trace has them; 0 is off.
        max_tokens: limit on the generated tokens of a trace.
        min_tokens: before so many generated tokens a trace does not end by itself.
        stop: texts that end a trace, such as the next question that a base model would go on with.
        stop_token_ids: tokens that end a trace, beside the model's own.
        seed: of the sampling.
    """

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    max_tokens: int | None
    min_tokens: int | None
    stop: Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    seed: int | None


class SampleOptions(SamplingOptions, total=False):
    """What to sample, to record and to stop: the options of ``WeightedVoter.solve``, ``sample`` and ``stream``.

    Attributes:
        keep: share of a question's traces to keep at the detection position, by default the head's; 1 prunes
            nothing.
        at: detection position in generated tokens; by default the head's first.
        confidence: record DeepConf's token confidences; by default ``solve`` and ``stream`` do where their method
            reads them, and ``sample`` does.
        confidence_window: record DeepConf's measures over windows of this many tokens, in place of every token's
            confidence: a few numbers a trace, enough for DeepConf's votes with that window.
        self_certainty: record each trace's self-certainty; by default where the method reads it.
        scores: record the head's scores, by default where there is a head and the method reads them; without
            them nothing but majority and confidences can vote.
        score_every: record them at every multiple of this many tokens too.
        rules: more stopping rules of the engine, beside the keep ratio.
        start: ask in waves, the first of so many traces; further ones follow while the vote of those that have
            ended is open, n at most. Any of ``start``, ``certainty`` and ``step`` asks for waves, and what is left
            out is as in `Waves`.
        certainty: waves end when the vote is this sure of its leader, see `arrol_tts.waves.sureness`.
        step: traces of each further wave.
        calibration: of votes by the method that votes: ``certainty`` is then its probability that the leader is
            right, and so is the result's confidence.
        consensus: when a question needs no more traces; its others are cancelled then.
        chat: send questions through the model's chat template, where it has one, as is the default unless the head
            says otherwise; False sends the text as it is, such as a few-shot prompt for a base model.
        system: system prompt, in place of the head's own; not beside one that a conversation begins with.
        chat_template_kwargs: variables of the model's chat template, such as ``{"enable_thinking": False}``.
        request_fields: further fields of OpenAI's chat completions for each trace, such as ``tools``,
            ``tool_choice`` and ``response_format``: see `arrol_tts.engine.request.Question`.
        samples: ``{id: numbers}`` of the traces to sample, where not all n of a question are wanted: to go on with
            an interrupted run. Not together with waves, or with rules that compare a question's traces.
    """

    keep: float | None
    at: int | None
    confidence: bool | None
    confidence_window: int
    self_certainty: bool | None
    scores: bool | None
    score_every: int
    rules: Sequence[Rule]
    start: int | None
    certainty: float | None
    step: int | None
    calibration: AnswerCalibration | None
    consensus: Consensus | None
    chat: bool
    system: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    request_fields: Mapping[str, Any] | None
    samples: Mapping[str, Sequence[int]] | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A call, ready for an engine.

    Attributes:
        questions: with their prompts.
        sampling: how to sample each.
        spec: what to record, and when to stop.
        consensus: when a question needs no more traces; None: it needs all.
        waves: how many are started at a time; None: all at once.
        calibration: of the votes.
    """

    questions: tuple[Question, ...]
    sampling: Sampling
    spec: TraceSpec
    consensus: Consensus | None
    waves: Waves | None
    calibration: AnswerCalibration | None


def check_options(call: str, options: Mapping[str, object]) -> None:
    """Refuse options that there are not.

    Args:
        call: the public method, for the message.
        options: as given.

    Raises:
        OptionError: naming the first one, the nearest that there is, and the call.
    """
    known = SamplingOptions.__annotations__ | SampleOptions.__annotations__
    for name in options:
        if name not in known:
            import difflib

            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(known)}"
            raise OptionError(f"{call}() has no option {name!r}: {hint}")


def make_plan(
    questions: Questions,
    n: int,
    options: SampleOptions,
    *,
    config: QualityHeadConfig | None,
    prompt: Prompt,
    needs: Collection[str] | None = None,
) -> Plan:
    """Put a call together.

    Args:
        questions: what to ask.
        n: traces of each.
        options: of the call.
        config: of the head, None without one.
        prompt: how the questions are put to the model.
        needs: signals that the voting method reads, and no others are recorded unless asked for; None for a call
            without a vote, which records confidences and scores.

    Raises:
        InputError: when a value is out of range, or something needs a head and there is none.
    """
    every_signal = needs is None
    needs = ("confidence", "scores") if needs is None else needs
    score_every = options.get("score_every", 0)
    window = options.get("confidence_window", 0)
    scores = _either(options.get("scores"), "scores" in needs or score_every > 0)
    keep, at = options.get("keep"), options.get("at")
    if not (every_signal or "scores" in needs) and keep is None:
        keep = 1.0
    rules = tuple(options.get("rules", ()))
    sampling = _sampling(n, options, config)
    score_at: tuple[int, ...] = ()
    if config is None:
        if keep not in (None, 1) or at is not None:
            raise InputError("pruning needs a quality head: make the voter with from_pretrained(...)")
        scores = False
    else:
        position = config.positions[0] if at is None else at
        share = config.keep if keep is None else keep
        # Where nothing is pruned, traces shorter than the head's own position are scored at their end alone.
        is_needless = share == 1 and at is None and position >= sampling.max_tokens
        score_at = (position,) if scores and not is_needless else ()
        rules = (KeepShare(position, share), *rules) if share != 1 else rules
    spec = TraceSpec(
        score_at=score_at,
        score_every=score_every,
        score_finish=scores,
        confidence=_either(options.get("confidence"), "confidence" in needs) and not window,
        confidence_window=window,
        self_certainty=_either(options.get("self_certainty"), "self_certainty" in needs),
        rules=rules,
    )
    named = _named(questions)
    samples = {question_id: tuple(numbers) for question_id, numbers in (options.get("samples") or {}).items()}
    if unknown := samples.keys() - named.keys():
        raise InputError(f"samples has {min(unknown)!r}, and there is no such question: name those that are asked")
    chat = options.get("chat", prompt.chat)
    asked = tuple(
        prompt.ask(
            question_id,
            question,
            system=options.get("system"),
            chat=chat,
            samples=samples.get(question_id),
            chat_template_kwargs=dict(options.get("chat_template_kwargs") or {}),
            request_fields=dict(options.get("request_fields") or {}),
        )
        for question_id, question in named.items()
    )
    return Plan(
        asked,
        sampling,
        spec,
        consensus=options.get("consensus"),
        waves=_waves(n, options, rules),
        calibration=options.get("calibration"),
    )


def _named(questions: Questions) -> Mapping[str, Asked]:
    if isinstance(questions, Mapping):
        return questions
    if isinstance(questions, str) or (questions and isinstance(questions[0], Mapping)):
        return {"q0": questions}  # type: ignore[dict-item]  # a text, or the messages of one conversation
    return {f"q{i}": question for i, question in enumerate(questions)}  # type: ignore[misc]  # several


def _sampling(n: int, options: Mapping[str, object], config: QualityHeadConfig | None) -> Sampling:
    names = {field.name for field in fields(Sampling)} & options.keys()
    given = {name: options[name] for name in names if options[name] is not None}
    own = dict(config.sampling) if config else {}
    return Sampling(n=n, **own | given)


def _waves(n: int, options: SampleOptions, rules: Sequence[Rule]) -> Waves | None:
    asked = {name: options.get(name) for name in ("start", "step", "certainty")}
    given = {name: value for name, value in asked.items() if value is not None}
    if not given:
        return None
    waves = Waves(**{"start": min(Waves().start, n)} | given)  # type: ignore[arg-type]  # it checks them
    waves.check(n)
    if options.get("samples") is not None:
        raise InputError(
            "waves decide on all traces of a question so far, and samples= asks for some: leave out samples, or "
            "start, certainty and step"
        )
    if rest := [rule.kind for rule in rules if not isinstance(rule, (KeepShare, Threshold))]:
        raise InputError(
            f"the rule {rest[0]} needs all traces of a question at once: leave it out, or start, certainty and "
            "step"
        )
    return waves


def _either(given: bool | None, default: bool) -> bool:
    return default if given is None else given
