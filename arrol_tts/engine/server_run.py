"""One call of ``ServerEngine.sample`` or ``stream``: its inbox, and what is known of traces on their way."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from arrol_tts.engine.base import Run
from arrol_tts.engine.server_replies import Written
from arrol_tts.errors import ServerError
from arrol_tts.events import Progress

if TYPE_CHECKING:
    from arrol_tts.engine.request import Question, Request
    from arrol_tts.trace import Trace


class ServerRun(Run):
    """One call of ``sample`` or ``stream``; ``_cancel``, ``note`` and ``give_up`` run on the event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        request: Request,
        ask: Callable[[ServerRun, Request], Coroutine[Any, Any, None]],
    ) -> None:
        self.request = request
        self.inbox: queue.SimpleQueue[Progress | Trace | Exception | None] = queue.SimpleQueue()
        """Traces and progress, an error that ends them, None when the run was closed."""
        self.jobs: dict[str, asyncio.Task[None]] = {}
        self.stopped: dict[str, str] = {}
        self._loop = loop
        self._told: dict[tuple[str, int], tuple[float, int, int]] = {}
        self._written: dict[tuple[str, int], Written] = {}
        self._ask = ask
        self._asking: list[Future[None]] = []
        self._closing = threading.Lock()
        self._closed = False
        self.add(request)

    def __next__(self) -> Trace | Progress:
        item = self.inbox.get()
        if item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return item

    def add(self, request: Request) -> None:
        with self._closing:
            if self._closed:
                return
            self._asking = [asking for asking in self._asking if not asking.done()]
            work = self._ask(self, request)
            try:
                self._asking.append(asyncio.run_coroutine_threadsafe(work, self._loop))
            except RuntimeError:
                work.close()
                self.inbox.put(ServerError("the engine was closed while it was sampling"))

    def cancel(self, question_id: str, why: str) -> None:
        with contextlib.suppress(RuntimeError):  # the engine is closed: nothing runs any more
            self._loop.call_soon_threadsafe(self._cancel, question_id, why)

    def close(self) -> None:
        # This closes the connections, and the servers abort.
        with self._closing:
            self._closed = True
            for asking in self._asking:
                asking.cancel()
        self.inbox.put(None)  # another thread may be waiting for the next item

    def _cancel(self, question_id: str, why: str) -> None:
        if question_id not in self.stopped:
            self.stopped[question_id] = why
            self.jobs[question_id].cancel()

    def note(self, question_id: str, sample_id: int, written: Written) -> None:
        """Report what a trace wrote, when it is time; a trace that is sampled again is silent until it is new."""
        key = question_id, sample_id
        self._written[key] = written
        text, every = written.text, self.request.every
        last, characters, tokens = self._told.get(key, (0.0, 0, 0))
        if every is None or len(text) <= characters or time.monotonic() - last < every:
            return
        self._told[key] = time.monotonic(), len(text), written.num_tokens
        self.inbox.put(Progress(question_id, sample_id, max(tokens, written.num_tokens), text[characters:]))

    def give_up(self, question: Question, sample_ids: Iterable[int], *, opened: bool) -> None:
        """Report traces that are not needed any more, with what they had written.

        Args:
            question: theirs.
            sample_ids: their numbers.
            opened: the prompt ended inside a thinking.
        """
        for i in sample_ids:
            written = self._written.get((question.id, i)) or Written()
            self.inbox.put(written.cancelled(question, i, self.stopped[question.id], opened=opened))
