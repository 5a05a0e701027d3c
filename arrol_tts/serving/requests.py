"""Requests of OpenAI's API with the field ``arrol``: types and names; ranges are checked where values are used."""

from __future__ import annotations

import difflib
import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from arrol_tts.answers import EqualityName, PercentSign
from arrol_tts.serving.errors import ApiError, bad_field


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_share(value: Any) -> Any:
    return {"share": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value


MAX_ENTRIES = 1024
"""Of a list or map in a request."""

MAX_VOCABULARY = 1 << 20
"""Tokens that a list may name where it may name a whole vocabulary."""

MAX_MISTAKES = 1000
"""In a body with more, none is named: pydantic makes an object of each, on the event loop."""

T = TypeVar("T")
Listed = Annotated[list[T], Field(max_length=MAX_ENTRIES, fail_fast=True)]
Texts = Annotated[Listed[str] | None, BeforeValidator(_as_list)]


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class ConsensusFields(_Fields):
    """When a request needs no more samples: see `arrol_tts.Consensus`."""

    share: float | None = None
    certainty: float | None = None
    min_votes: int | None = None


class VoteFields(_Fields):
    """How to vote: the field ``arrol`` of a request, whose names are those of ``WeightedVoter.solve``."""

    n: int | None = None
    method: str | None = None
    keep: float | None = None
    at: int | None = None
    start: int | None = None
    step: int | None = None
    certainty: float | None = None
    score_every: int | None = None
    consensus: Annotated[ConsensusFields | None, BeforeValidator(_as_share)] = None
    min_confidence: float | None = None
    equality: EqualityName | None = None
    percent: PercentSign | None = None
    system: str | None = None
    traces: bool | None = None


class StreamFields(_Fields):
    """What a stream brings beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class CommonFields(_Fields):
    """What chats and plain completions have in common."""

    ignored: ClassVar[tuple[str, ...]] = (
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    )  # fmt: skip
    """Accepted, because clients send them, and without meaning here."""

    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamFields | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: Texts = None
    stop_token_ids: Listed[int] | None = None
    seed: int | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    arrol: VoteFields = VoteFields()

    @property
    def choices(self) -> int:
        """Different answers in the reply at most."""
        return 1 if self.n is None else self.n


class ChatFields(CommonFields):
    """A request for chat completions."""

    messages: list[Any]
    max_completion_tokens: int | None = None
    tools: Listed[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_ENTRIES)] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    bad_words: Listed[str] | None = None
    allowed_token_ids: Annotated[list[int], Field(max_length=MAX_VOCABULARY, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None


class TextFields(CommonFields):
    """A request for plain completions."""

    prompt: Annotated[Listed[str], BeforeValidator(_as_list)]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    logprobs: None = None


FieldsT = TypeVar("FieldsT", bound=CommonFields)


def read_fields(model: type[FieldsT], body: bytes) -> FieldsT:
    """Parse a body.

    Raises:
        ApiError: a 400 that names the first field that is wrong.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > MAX_MISTAKES:
            raise ApiError(
                400, f"the body has {error.error_count()} unknown or wrong fields", code="invalid_type"
            ) from None
        found = error.errors(include_url=False, include_context=False)[0]
    where = found["loc"]
    if not where:
        raise ApiError(400, f"the body is no JSON object: {found['msg']}", code="invalid_json")
    param = path_of(where)
    if found["type"] == "extra_forbidden":
        raise _unknown(model, where, param)
    if found["type"] == "missing":
        raise bad_field(param, "it is missing: send it")
    if found["type"] == "literal_error" and where[0] in ("logprobs", "top_logprobs", "best_of", "echo", "suffix"):
        raise bad_field(param, "votes have none of it: leave it out")
    shown = found["input"]
    given = f" is {json.dumps(shown):.60}" if isinstance(shown, (str, int, float, bool, type(None))) else ""
    raise ApiError(400, f"{param}{given}: {found['msg'][:1].lower()}{found['msg'][1:]}", param=param,
                   code="invalid_type")  # fmt: skip


def path_of(where: tuple[int | str, ...]) -> str:
    """``("messages", 0, "role")`` as ``messages[0].role``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part:.60}" for part in where]
    return "".join(parts).removeprefix(".")


def _unknown(model: type[BaseModel], where: tuple[int | str, ...], param: str) -> ApiError:
    """What to write in place of a name that there is not."""
    inner: dict[str, type[BaseModel]] = {
        "arrol": VoteFields,
        "consensus": ConsensusFields,
        "stream_options": StreamFields,
    }
    owner = inner.get(str(where[-2]), model) if len(where) > 1 else model
    names = list(owner.model_fields)
    near = difflib.get_close_matches(str(where[-1])[:60], names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
    return ApiError(400, f"{param}: there is no such field; {hint}", param=param, code="unknown_parameter")
