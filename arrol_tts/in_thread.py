"""A blocking iterator for asyncio. A module of its own, because asyncio takes long to import."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from arrol_tts.streams import Closing

T = TypeVar("T")


async def in_thread(make: Callable[[], Closing[T]]) -> AsyncGenerator[T, None]:
    """Make a blocking iterator and read it, on a thread of its own.

    The event loop goes on all the while, also where making it or closing it has to wait for an engine or a server.

    Args:
        make: makes the iterator, which is closed when the reader leaves or is cancelled.

    Raises:
        Exception: whatever ``make`` or the iterator raises.
    """
    loop = asyncio.get_running_loop()
    made: list[Closing[T]] = []
    inbox: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    left = threading.Event()

    def tell(kind: str, value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens
            loop.call_soon_threadsafe(inbox.put_nowait, (kind, value))

    def read() -> None:
        try:
            source = make()
            made.append(source)  # from here on the reader closes it, or what it left behind is seen below
            with contextlib.closing(source):
                while not left.is_set():
                    tell("item", next(source))
        except StopIteration:
            tell("end", None)
        except Exception as error:
            tell("error", error)

    threading.Thread(target=read, name="arrol-stream", daemon=True).start()
    is_over = False
    try:
        while (news := await inbox.get())[0] == "item":
            yield news[1]
        is_over = True
        if news[0] == "error":
            raise news[1]
    finally:
        left.set()
        if made and not is_over:
            with contextlib.suppress(ValueError):  # a generator that is running closes itself at its next item
                await asyncio.shield(loop.run_in_executor(None, made[0].close))
