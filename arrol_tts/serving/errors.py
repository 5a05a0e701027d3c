"""Errors as OpenAI's API words them."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any

from arrol_tts.errors import ArrolError, EngineError, InputError

_NAMED = (
    re.compile(r"^([a-z_]{1,40})\b"),
    re.compile(r"\bhas no ([a-z_]{1,40})\b"),
    re.compile(r"\b([a-z_]{1,40})="),
)
"""Where messages of the core name what they are about."""


class ApiError(ArrolError):
    """What a request is answered with in place of a vote.

    Args:
        status: of HTTP.
        message: what is wrong, and what to write instead.
        param: the field of the request that it is about.
        code: a word for programs.
        headers: of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's form, JSON-ready."""
        error = {"message": self.message, "type": _type_of(self.status), "param": self.param, "code": self.code}
        return {"error": error}


def bad_field(param: str, message: str) -> ApiError:
    """A 400 about a field; the message need not name it."""
    return ApiError(400, message if param in message else f"{param}: {message}", param=param, code="invalid_value")


def api_error(error: Exception, fields: Mapping[str, str] | None = None) -> ApiError:
    """What an error of the core means to a client.

    Args:
        error: raised by a voter or an engine.
        fields: where the names that messages begin with stand in a request, such as ``{"keep": "arrol.keep"}``.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        named = [found[1] for pattern in _NAMED if (found := pattern.search(str(error)))]
        param = next((fields[name] for name in named if fields and name in fields), None)
        return ApiError(400, str(error), param=param, code="invalid_value")
    if isinstance(error, EngineError):
        return ApiError(503, str(error), code="engine_unavailable", headers={"retry-after": "5"})
    # What went wrong is in the server's log, and none of the client's business.
    return ApiError(500, "the server failed; its log says more", code="internal_error")


def log_failure(error: Exception) -> None:
    """Note what the server is to blame for, in one line: what it is about may be anybody's text."""
    known = isinstance(error, ArrolError)
    words = str(error) if known else "".join(traceback.format_exception(error))
    logging.getLogger("arrol_tts.serving").error("%s", json.dumps(words))


def _type_of(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
