"""``arrol-serve`` as the place where traces come from: its streams as the engine's events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from arrol_tts.errors import InputError, ServerError
from arrol_tts.events import Ended, Event, Progress
from arrol_tts.trace import Trace

QUESTION_ID = "q0"
"""Of the one question of a request."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint that answers.

    Attributes:
        url: its address, without ``/v1``.
        model: the name of its model.
        api_key: sent as bearer token; "" where it asks for none.
    """

    url: str
    model: str
    api_key: str = ""

    @classmethod
    def find(cls, url: str, api_key: str = "") -> Endpoint | None:
        """The endpoint at an address; None where something else answers, or nothing does.

        Raises:
            InputError: when it refuses the key.
        """
        url = url.rstrip("/").removesuffix("/v1")
        try:
            response = httpx.get(f"{url}/v1/models", headers=_headers(api_key), timeout=10)
            refused = response.status_code == 401
            cards = [] if refused else response.json()["data"]
            names = [card["id"] for card in cards if card.get("owned_by") == "arrol"]
        except (httpx.TransportError, httpx.InvalidURL, ValueError, LookupError, TypeError, AttributeError):
            return None
        if refused:
            raise InputError(f"{url} refuses the API key: set ARROL_SERVER_KEY")
        return cls(url, names[0], api_key) if names else None

    async def astream(self, request: dict[str, Any]) -> AsyncGenerator[Event, None]:
        """Watch a request being answered; closing the iterator cancels its samples.

        Args:
            request: the body, without the model's name.

        Yields:
            Progress of the traces, and how each ended.

        Raises:
            InputError: when the endpoint refuses the request.
            ServerError: when it does not answer, is busy, or fails on the way.
        """
        body = {"model": self.model, **request, "stream": True, "arrol": {**request["arrol"], "traces": True}}
        url, ended = f"{self.url}/v1/chat/completions", set[int]()
        try:
            async with (
                httpx.AsyncClient(timeout=httpx.Timeout(10, read=None), headers=_headers(self.api_key)) as client,
                client.stream("POST", url, json=body) as response,
            ):
                if response.status_code != 200:
                    raise _refusal(response.status_code, await response.aread(), self.url)
                async for line in response.aiter_lines():
                    for event in _events(line):
                        if isinstance(event, Ended):
                            if event.trace.sample_id in ended:
                                continue
                            ended.add(event.trace.sample_id)
                        yield event
        except httpx.TransportError as error:
            raise ServerError(f"{self.url} does not answer: {type(error).__name__} {error}".strip()) from error


def _headers(api_key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _events(line: str) -> Iterator[Event]:
    """What a line of a stream says of the traces. The last report has all of them once more.

    Raises:
        ServerError: when it says that the vote failed.
    """
    if not line.startswith("data: {"):
        return
    chunk = json.loads(line.removeprefix("data: "))
    if "error" in chunk:
        raise ServerError(str(chunk["error"]["message"]))
    for sample in chunk.get("arrol", {}).get("samples", ()):
        scores = {int(position): float(score) for position, score in sample["scores"].items()}
        if "finish_reason" not in sample:
            yield Progress(QUESTION_ID, sample["sample"], sample["tokens"], sample["text"], scores)
            continue
        yield Ended(
            Trace(
                QUESTION_ID,
                sample["sample"],
                text=sample["text"],
                answer=sample["answer"],
                num_tokens=sample["tokens"],
                finish_reason=sample["finish_reason"],
                detail=sample["detail"],
                scores=scores,
            )
        )


def _refusal(status: int, body: bytes, url: str) -> Exception:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = f"HTTP {status} from {url}"
    return InputError(message) if 400 <= status < 500 and status != 429 else ServerError(message)
