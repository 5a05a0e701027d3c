"""One server with the pocket model in real vLLM, for every test of the page."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from arrol_tts.voter import WeightedVoter
    from demo.app import Site
    from demo.live import LiveRunner

QUESTION, ANSWER = "9+9*4-4-3-5-4*5", "13"


@dataclass(frozen=True, slots=True)
class Server:
    """A running page."""

    url: str
    site: Site


def hold(monkeypatch: pytest.MonkeyPatch, engine: VLLMEngine, *steps: int) -> list[threading.Event]:
    """Let an engine wait before some of its next steps until their events are set: half a minute at most.

    Those before take their time, so that progress is reported whatever else the machine does.
    """
    events = {step: threading.Event() for step in steps}
    take, numbers = engine._loop._step, itertools.count(1)

    def step() -> None:
        number = next(numbers)
        if number < max(steps):
            time.sleep(0.02)
        if number in events:
            events[number].wait(30)
        take()

    monkeypatch.setattr(engine._loop, "_step", step)
    return list(events.values())


@pytest.fixture(scope="session")
def pocket_voter(vllm_engine: VLLMEngine) -> WeightedVoter:
    from arrol_tts.head_config import read_head_config
    from arrol_tts.pocket import POCKET_HEAD
    from arrol_tts.voter import WeightedVoter

    return WeightedVoter(vllm_engine, config=read_head_config(POCKET_HEAD))


@pytest.fixture(scope="session")
def endpoint(vllm_engine: VLLMEngine) -> Iterator[str]:
    """The address of an ``arrol-serve`` on the same engine."""
    pytest.importorskip("fastapi", reason="the endpoint is not installed: pip install 'arrol[serve]'")
    from arrol_tts.head_config import read_head_config
    from arrol_tts.pocket import POCKET_HEAD
    from tests.arrol_tts.serving.endpoint import serving

    with serving(vllm_engine, read_head_config(POCKET_HEAD)) as endpoint:
        yield endpoint.url


@pytest.fixture(scope="session")
def runner(pocket_voter: WeightedVoter) -> LiveRunner:
    from demo.cli import pocket_reference
    from demo.live import LiveRunner
    from demo.recording import Recordings
    from demo.request import Served

    runner = LiveRunner(
        pocket_voter,
        Recordings(),
        max_tokens=256,
        score_every=8,
        reference=pocket_reference,
        served=Served("http://127.0.0.1:8001", start="arrol-serve pocket"),
    )
    runner.warm_up()
    return runner


@pytest.fixture(scope="session")
def server(runner: LiveRunner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with page_of(runner, tmp_path_factory) as server:
        yield server


@contextmanager
def page_of(runner: LiveRunner, folders: pytest.TempPathFactory) -> Iterator[Server]:
    """The page over a runner, until the block ends."""
    pytest.importorskip("gradio", reason="the demo is not installed: pip install 'arrol[demo]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folders.mktemp("uploads")))
        from arrol_tts.pocket import POCKET_HEAD
        from demo.app import Site, build, launch_options
        from demo.cli import ABOUT_POCKET, POCKET_EXAMPLES
        from demo.views import last_evaluation

        site = Site(
            voter=runner.voter,
            runner=runner,
            recordings=runner.recordings,
            about=ABOUT_POCKET,
            examples=POCKET_EXAMPLES,
            max_running=2,
            evaluation=last_evaluation(POCKET_HEAD, folders.mktemp("runs")),
        )
        runner.on_end = lambda state: site.reliability.add(state.traces)
        page = build(site)
        _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
        yield Server(url, site)
        page.close()
