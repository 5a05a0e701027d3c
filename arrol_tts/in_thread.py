"""A blocking iterator for asyncio. A module of its own, because asyncio takes long to import."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from arrol_tts.streams import Closing

T = TypeVar("T")


async def in_thread(source: Closing[T]) -> AsyncIterator[T]:
    """Read a blocking iterator on a thread of its own; it is closed when the reader leaves or is cancelled."""
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    left = threading.Event()

    def tell(kind: str, value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens
            loop.call_soon_threadsafe(inbox.put_nowait, (kind, value))

    def read() -> None:
        try:
            for item in source:
                if left.is_set():
                    break
                tell("item", item)
            tell("end", None)
        except Exception as error:
            tell("error", error)
        finally:
            source.close()

    thread = threading.Thread(target=read, name="arrol-stream", daemon=True)
    thread.start()
    try:
        while (news := await inbox.get())[0] == "item":
            yield news[1]
        if news[0] == "error":
            raise news[1]
    finally:
        left.set()
        with contextlib.suppress(ValueError):  # a generator that is running closes itself at its next item
            source.close()
