"""What a server was started with: the defaults of its votes, and its limits."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from arrol_tts.answers import EqualityName, PercentSign


class VoteDefaults(BaseModel):
    """How requests are voted on that do not say so; the fields are those of ``WeightedVoter.solve``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(default=32, ge=1)
    method: str = "quality"
    keep: float | None = None
    start: int | None = None
    step: int | None = None
    certainty: float | None = None
    consensus: float | None = None
    min_confidence: float | None = None
    equality: EqualityName | None = None
    percent: PercentSign | None = None


class Settings(BaseModel):
    """Everything that ``arrol-serve`` is told beside its engine.

    Attributes:
        model: the name that clients ask for.
        vote: defaults of the votes.
        max_n: samples of a request at most.
        max_tokens: generated tokens of a sample at most.
        max_choices: ``n`` of a request at most: different answers in a reply.
        max_prompts: prompts of a request for completions at most.
        max_body: bytes of a request at most.
        max_running: requests that are sampled at the same time.
        max_waiting: requests that wait for their turn.
        keys: names by API key; empty: nobody is asked for one.
        log_contents: whether the access log holds what was asked and answered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, pattern="^[^@]*$")
    vote: VoteDefaults = VoteDefaults()
    max_n: int = Field(default=64, ge=1)
    max_tokens: int = Field(default=4096, ge=1)
    max_choices: int = Field(default=8, ge=1)
    max_prompts: int = Field(default=16, ge=1)
    max_body: int = Field(default=8 << 20, ge=1024)
    max_running: int = Field(default=32, ge=1)
    max_waiting: int = Field(default=256, ge=0)
    keys: dict[str, str] = {}
    log_contents: bool = False


Kind = Literal["chat", "text"]
"""Whether a request is a chat, or plain text that the model goes on with."""
