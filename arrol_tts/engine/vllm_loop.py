"""vLLM's engine on a thread of its own, shared by all who sample."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from arrol_tts.errors import EngineError

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

T = TypeVar("T")


class Listener(Protocol):
    """Somebody who waits for requests; all methods are called on the loop's thread."""

    def receive(self, output: RequestOutput) -> None:
        """A request of this listener's has news."""

    def step_ended(self) -> None:
        """All outputs of a step were received."""

    def failed(self, error: Exception) -> None:
        """The engine died, or another method raised: nothing will come any more."""


class VLLMLoop:
    """Builds an engine and steps it while it has requests.

    One thread builds, steps and changes it, because vLLM's engine is not made for several, and because
    every thread that computes on a CPU brings a set of OpenMP threads of its own.

    Args:
        build: makes the engine.
        tear_down: frees what it holds, after its last step.

    Raises:
        Exception: whatever ``build`` raises.
    """

    def __init__(self, build: Callable[[], LLMEngine], tear_down: Callable[[LLMEngine], None]) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._listeners: dict[str, Listener] = {}
        self._dead: Exception | None = None
        self._dying = threading.Lock()
        built: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(build, tear_down, built), name="arrol-vllm", daemon=True
        )
        self._thread.start()
        built.result()

    def trouble(self) -> str:
        """Why the engine is gone, "" while it is there."""
        return "" if self._dead is None else str(self._dead)

    def call(self, work: Callable[[LLMEngine], T]) -> T:
        """Run something between two steps, on the loop's thread, and return what it returns.

        Raises:
            EngineError: when the engine is closed or has died.
            Exception: whatever ``work`` raises.
        """
        if threading.current_thread() is self._thread:
            return work(self.engine)
        return self.post(work).result()

    def post(self, work: Callable[[LLMEngine], T]) -> Future[T]:
        """As ``call``, without waiting."""
        done: Future[T] = Future()
        with self._dying:
            if self._dead is None:
                self._calls.put((lambda: work(self.engine), done))
            else:
                done.set_exception(self._dead)
        return done

    def listen(self, name: str, listener: Listener) -> None:
        """Send a request's outputs to a listener, until it is finished; on the loop's thread only."""
        self._listeners[name] = listener

    def forget(self, name: str) -> None:
        """Send them to nobody any more; on the loop's thread only."""
        self._listeners.pop(name, None)

    def stop(self) -> None:
        """Tear the engine down after the current step; who still waits gets an EngineError."""
        self._calls.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(
        self, build: Callable[[], LLMEngine], tear_down: Callable[[LLMEngine], None], built: Future[None]
    ) -> None:
        try:
            self.engine = build()
        except BaseException as error:
            built.set_exception(error)
            return
        built.set_result(None)
        why = "it was closed"
        try:
            while self._serve_calls(wait=not self._listeners):
                if self._listeners:
                    self._step()
        except BaseException as error:
            why = f"{type(error).__name__}: {error}"
        with self._dying:
            self._dead = EngineError(f"the vLLM engine is gone ({why}): make a new one")
        for listener in set(self._listeners.values()):
            listener.failed(self._dead)
        self._listeners.clear()
        while not self._calls.empty():
            if (call := self._calls.get()) is not None:
                call[1].set_exception(self._dead)
        tear_down(self.engine)

    def _serve_calls(self, *, wait: bool) -> bool:
        """Run what was asked for since the last step; False when that was to stop."""
        while wait or not self._calls.empty():
            call = self._calls.get()
            if call is None:
                return False
            work, done = call
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)
            wait = False
        return True

    def _step(self) -> None:
        stepped, ended = set(self._listeners.values()), False
        for output in self.engine.step():
            if (listener := self._listeners.get(output.request_id)) is not None:
                if output.finished:
                    self.forget(output.request_id)
                    ended = True
                _tell(listener, listener.receive, output)
        for listener in stepped:
            _tell(listener, listener.step_ended)
        if ended:
            time.sleep(0)  # whoever takes the traces may have something to cancel before the next step


def _tell(listener: Listener, call: Callable[..., None], *args: Any) -> None:
    """Call a listener; what it raises is its own affair, and nobody else's."""
    try:
        call(*args)
    except Exception as error:
        listener.failed(error)
