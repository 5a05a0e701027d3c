"""How a request is voted on: its fields, the model's name, the server's defaults, the head's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from arrol_tts.answers import Equality, PercentSign, extract_answer
from arrol_tts.answers.of_trace import calls_or
from arrol_tts.consensus import Consensus
from arrol_tts.engine.request import Sampling
from arrol_tts.errors import InputError
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.messages import INSTRUCTING
from arrol_tts.plan import SampleOptions, SamplingOptions
from arrol_tts.serving.errors import ApiError, api_error, bad_field
from arrol_tts.serving.requests import ChatFields, CommonFields
from arrol_tts.serving.settings import Settings
from arrol_tts.voting import METHODS
from arrol_tts.waves import Waves

WAVES = ("start", "step", "certainty")
MAX_SEED = 1 << 31
OF_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
OF_VLLM = ("structured_outputs", "bad_words", "allowed_token_ids", "ignore_eos")
PASSED_ON = (*OF_TOOLS, *OF_VLLM, "response_format", "logit_bias", "reasoning_effort")
"""Fields of a chat that the request for each sample has as they are."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A vote as it will be held.

    Attributes:
        n: samples of each prompt at most.
        method: how they are weighed.
        options: of ``WeightedVoter.solve``.
        equality: what makes two answers one.
        percent: what a per cent sign means; None: likewise.
        extract: reads the answer off a sample's text.
        min_confidence: below it the vote abstains; None: never.
        traces: whether the reply shows what each sample wrote.
    """

    n: int
    method: str
    options: SampleOptions
    equality: Equality
    percent: PercentSign | None
    extract: Callable[[str], str | None]
    min_confidence: float | None
    traces: bool = False

    @property
    def seed(self) -> int:
        """Of the samples: the same request with it gives the same ones again."""
        return self.options["seed"] or 0


def models_of(settings: Settings, methods: Iterable[str]) -> list[str]:
    """The names that clients can ask for: the model's, and with each method that can vote here."""
    return [settings.model, *(f"{settings.model}@{method}-{settings.vote.n}" for method in methods)]


def choose(request: CommonFields, settings: Settings, config: QualityHeadConfig | None, *, seed: int) -> Choice:
    """Decide how to vote on a request.

    Args:
        request: as it came.
        settings: defaults and limits.
        config: the head's, None without one.
        seed: of the samples, where the request names none.

    Raises:
        ApiError: a 400 or 404 that names the field.
    """
    named = _read_model(request.model, settings)
    fields, defaults = request.arrol, settings.vote
    given = fields.model_dump(exclude_none=True, exclude={"consensus"})
    if "n" in given and "n" in named and given["n"] != named["n"]:
        raise bad_field("arrol.n", f"it is {given['n']}, and the model's name says {named['n']}: leave one out")
    if "method" in given and "method" in named and given["method"] != named["method"]:
        raise bad_field("arrol.method", f"the model's name says {named['method']!r}: leave one out")
    chosen = named | given
    n = _n_of(chosen.get("n", min(defaults.n, settings.max_n)), settings)
    method = _method_of(chosen.get("method", defaults.method), config, is_default="method" not in chosen)
    if not 1 <= request.choices <= settings.max_choices:
        raise bad_field("n", f"it is {request.n}; it must be from 1 to {settings.max_choices} different answers")
    sampling = _sampling(request, settings, config, seed)
    options: SampleOptions = {**sampling, **_pruning(chosen, defaults.keep, sampling["max_tokens"] or 1, config)}
    if isinstance(request, ChatFields):
        _add_chat(options, request)
    elif fields.system is not None:
        raise bad_field("arrol.system", "a plain completion has no system prompt: write it into the prompt")
    if "score_every" in chosen:
        options["score_every"] = _score_every_of(chosen["score_every"], config)
    _add_waves(options, chosen, defaults, n)
    consensus = _consensus(request, defaults.consensus, method)
    if consensus is not None:
        options["consensus"] = consensus
    equality, extract = _equality(request, chosen, settings, config)
    min_confidence = chosen.get("min_confidence", defaults.min_confidence)
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise bad_field("arrol.min_confidence", f"it is {min_confidence}; it must be in [0, 1]")
    return Choice(
        n=n,
        method=method,
        options=options,
        equality=equality,
        percent=chosen.get("percent", defaults.percent),
        extract=extract,
        min_confidence=min_confidence,
        traces=bool(fields.traces),
    )


def extractor(equality: Equality) -> Callable[[str], str | None]:
    """What reads the answer off a text, so that it suits the equality.

    Mathematics and choices are looked for in the text. For ``text`` it is what is marked as the answer, or all of
    the text; for ``exact`` and ``json`` all of it.
    """
    if equality == "math":
        return extract_answer
    if equality == "choice":
        return partial(extract_answer, choices=True)
    if equality == "text":
        return lambda text: extract_answer(text, stated=True) or text.strip() or None
    return lambda text: text.strip() or None


def _equality(
    request: CommonFields, chosen: dict[str, Any], settings: Settings, config: QualityHeadConfig | None
) -> tuple[Equality, Callable[[str], str | None]]:
    """What makes two answers one, and what reads them: structures are compared as such, unless told otherwise."""
    own = config.equality if config else "math"
    equality: Equality = chosen.get("equality") or settings.vote.equality or own
    if not isinstance(request, ChatFields):
        return equality, extractor(equality)
    wanted = request.response_format or {}
    if "equality" not in chosen and wanted.get("type", "text") != "text":
        equality = "json"
    extract = extractor(equality)
    if request.tools:
        percent = chosen.get("percent") or settings.vote.percent or (config.percent if config else "fraction")
        equality = calls_or(equality, percent)
    return equality, extract


def _read_model(model: str | None, settings: Settings) -> dict[str, Any]:
    """What a model's name says: ``MODEL``, ``MODEL@32``, ``MODEL@quality`` or ``MODEL@quality-32``."""
    if model is None:
        return {}
    name, has_vote, vote = model.partition("@")
    if name != settings.model:
        raise ApiError(
            404,
            f"the model {model!r:.200} does not exist: this server has {settings.model!r}, and "
            f"'{settings.model}@METHOD-N' such as '{settings.model}@majority-16'",
            param="model",
            code="model_not_found",
        )
    if not has_vote:
        return {}
    if vote in METHODS:
        return {"method": vote}
    method, _, n = vote.rpartition("-")
    if not (n.isascii() and n.isdigit() and len(n) < 7 and (not method or method in METHODS)):
        raise ApiError(
            404,
            f"the model {model!r:.200} does not exist: behind the @ comes a method ({', '.join(METHODS)}) and how "
            f"many samples, such as '{settings.model}@majority-16'",
            param="model",
            code="model_not_found",
        )
    return {"n": int(n)} | ({"method": method} if method else {})


def _n_of(n: int, settings: Settings) -> int:
    if not 1 <= n <= settings.max_n:
        raise bad_field("arrol.n", f"it is {n}; this server takes from 1 to {settings.max_n} samples")
    return n


def _method_of(method: str, config: QualityHeadConfig | None, *, is_default: bool) -> str:
    if method not in METHODS:
        raise bad_field("arrol.method", f"there is no method {method!r:.60}: it has {', '.join(METHODS)}")
    if "scores" in METHODS[method].needs and config is None:
        if is_default:
            return "majority"
        raise bad_field(
            "arrol.method",
            f"{method!r} needs a quality head, and this server has none: use 'majority' or 'deepconf'",
        )
    return method


def _sampling(
    request: CommonFields, settings: Settings, config: QualityHeadConfig | None, seed: int
) -> SamplingOptions:
    """The sampling parameters, within their ranges and the server's limits."""
    given = {
        name: getattr(request, name)
        for name in SamplingOptions.__annotations__
        if getattr(request, name, None) is not None
    }
    field = "max_tokens"
    if isinstance(request, ChatFields) and request.max_completion_tokens is not None:
        field = "max_completion_tokens"
        if given.get("max_tokens", request.max_completion_tokens) != request.max_completion_tokens:
            raise bad_field("max_tokens", "max_completion_tokens says otherwise: leave one out")
        given["max_tokens"] = request.max_completion_tokens
    if "max_tokens" not in given:
        own = (config.sampling if config else {}).get("max_tokens", Sampling().max_tokens)
        given["max_tokens"] = min(int(own), settings.max_tokens)
    if not 1 <= given["max_tokens"] <= settings.max_tokens:
        raise bad_field(
            field,
            f"it is {given['max_tokens']}; this server takes from 1 to {settings.max_tokens} tokens a sample",
        )
    given.setdefault("seed", seed)
    try:
        Sampling(n=1, **given)
    except InputError as error:
        raise api_error(error, {name: name for name in given}) from None
    if given["seed"] >= MAX_SEED:
        raise bad_field("seed", f"it must be below {MAX_SEED}")
    return given  # type: ignore[return-value]


def _pruning(
    chosen: dict[str, Any], default: float | None, max_tokens: int, config: QualityHeadConfig | None
) -> SampleOptions:
    asked = {name: chosen[name] for name in ("keep", "at") if name in chosen}
    if config is None:
        for name in asked:
            if (name, asked[name]) != ("keep", 1):
                raise bad_field(f"arrol.{name}", "pruning needs a quality head, and this server has none")
        return {}
    keep = asked.get("keep", default)
    if keep is not None and not 0 < keep <= 1:
        raise bad_field("arrol.keep", f"it is {keep}; it must be in (0, 1], the share of samples that goes on")
    at = asked.get("at")
    if at is not None and not 1 <= at < max_tokens:
        raise bad_field("arrol.at", f"it is {at}; it must be from 1 to {max_tokens - 1}, below max_tokens")
    if at is None and config.positions[0] >= max_tokens:
        if "keep" in asked and keep != 1:
            raise bad_field(
                "arrol.keep",
                f"the head prunes at token {config.positions[0]}, and max_tokens is {max_tokens}: raise it, or "
                "say arrol.at",
            )
        return {"keep": 1.0}  # so short an answer ends before anything could be pruned
    return {name: value for name, value in (("keep", keep), ("at", at)) if value is not None}  # type: ignore[return-value]


def _add_chat(options: SampleOptions, request: ChatFields) -> None:
    """What a chat has beside its messages."""
    passed_on = {name: getattr(request, name) for name in PASSED_ON if getattr(request, name) is not None}
    if not passed_on.get("tools"):
        passed_on = {name: value for name, value in passed_on.items() if name not in OF_TOOLS}
    if passed_on.get("response_format") == {"type": "text"}:
        del passed_on["response_format"]
    if passed_on:
        options["request_fields"] = passed_on
    if request.chat_template_kwargs:
        options["chat_template_kwargs"] = request.chat_template_kwargs
    if request.arrol.system is not None:
        if request.messages[0]["role"] in INSTRUCTING:
            raise bad_field("arrol.system", "the conversation begins with a system prompt: leave one out")
        options["system"] = request.arrol.system


def _score_every_of(count: int, config: QualityHeadConfig | None) -> int:
    if config is None:
        raise bad_field("arrol.score_every", "scores need a quality head, and this server has none")
    if count < 1:
        raise bad_field("arrol.score_every", f"it is {count}; it must be a number of tokens, at least 1")
    return count


def _add_waves(options: SampleOptions, chosen: dict[str, Any], defaults: Any, n: int) -> None:
    given = {name: chosen[name] for name in WAVES if name in chosen}
    own = {name: getattr(defaults, name) for name in WAVES if getattr(defaults, name) is not None}
    waves = own | given
    if not waves:
        return
    if "start" not in given:
        waves["start"] = min(waves.get("start", Waves().start), n)
    try:
        Waves(**waves).check(n)
    except InputError as error:
        raise api_error(error, {name: f"arrol.{name}" for name in WAVES}) from None
    options.update(waves)  # type: ignore[typeddict-item]


def _consensus(request: CommonFields, default: float | None, method: str) -> Consensus | None:
    fields = request.arrol.consensus
    given = {} if fields is None else fields.model_dump(exclude_none=True)
    if fields is None and default is not None:
        given = {"share": default}
    if given.get("share") == 1:  # no share stops it
        given = {**given, "share": None} if "certainty" in given else {}
    if not given:
        return None
    try:
        return Consensus(**{"share": None, "method": method, **given})
    except InputError as error:
        names = {name: f"arrol.consensus.{name}" for name in ("share", "certainty", "min_votes")}
        raise api_error(error, names) from None
