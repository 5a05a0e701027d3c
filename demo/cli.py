"""``arrol-demo``: start the page."""

from __future__ import annotations

import os
import shlex
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from arrol_tts.errors import InputError
from arrol_tts.head_config import read_head_config, resolve_head
from arrol_tts.pocket import POCKET_HEAD, task
from arrol_tts.voter import WeightedVoter

from .choices import Choices
from .endpoint import Endpoint
from .live import LiveRunner
from .recording import Recordings, read_recordings
from .request import Served
from .views import last_evaluation

ABOUT_POCKET = (
    "The built-in pocket model is a toy (synthetic): it evaluates seven to ten one-digit numbers joined by + - *, "
    "and often forgets that * comes first."
)
ABOUT_ANY = "Anything the language model can answer with a number, a formula or a word."
POCKET_EXAMPLES = (
    ("9+9*4-4-3-5-4*5", True),
    ("6*8+8-7+9-3+9*6-2", False),
    ("7+9*8-3-3*8-6-2", False),
    ("4+5-8*5+9-7+9-3*7*7", False),
)
"""Test questions that the plain majority gets wrong, with seed 0 and nothing pruned."""

ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",  # nothing is sent anywhere
    # Gradio keeps statistics of every request, and computes them anew with each.
    "GRADIO_ANALYTICS_MAX_EVENTS": "200",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "50",
    # oneDNN keeps a compiled kernel for every batch size that comes up, by default so many that memory grows for
    # hours; fewer are no slower here.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
"""Set where the user has not; before Gradio and torch are imported."""

DEFAULT_ENDPOINT = "http://127.0.0.1:8001"
"""Where ``arrol-serve`` listens unless it is told otherwise."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    head: Annotated[str, typer.Option(help="quality head: folder or hub id")] = "pocket",
    model: Annotated[str | None, typer.Option(help="language model instead of the head's own")] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(
            help="URL of an arrol-serve (docs/apps.md), or of a vLLM server started with this head "
            "(docs/serving.md), which is repeatable"
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="system prompt, in place of the head's own")] = None,
    traces: Annotated[
        Path | None, typer.Option(help="only replay this trace file or store; no language model is loaded")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on", min=1, max=65535)] = 7860,
    max_tokens: Annotated[int | None, typer.Option(help="limit on a trace; the head's by default", min=2)] = None,
    max_traces: Annotated[int, typer.Option(help="limit on a run", min=1, max=256)] = 64,
    max_running: Annotated[int, typer.Option(help="runs at the same time; others queue", min=1)] = 4,
    max_waiting: Annotated[int, typer.Option(help="length of the queue", min=1)] = 64,
    runs: Annotated[Path, typer.Option(help="folder of arrol-eval's results")] = Path("runs"),
) -> None:
    """Watch the traces of a question compete: a page on http://127.0.0.1:7860."""
    # Gradio keeps uploads in a folder; ours holds nothing else and goes when the server does.
    with tempfile.TemporaryDirectory(prefix="arrol-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        from .app import Site, build, launch_options

        try:
            opened = read_recordings(traces) if traces is not None else []
            folder = resolve_head(head)
            is_pocket = folder == POCKET_HEAD and model is None
            endpoint = None if traces is not None else find_endpoint(server or ())
            if endpoint is not None:
                voter = WeightedVoter(config=read_head_config(folder))  # it votes, and samples nothing
            else:
                engine_options: dict[str, Any] = {"max_model_len": 512} if is_pocket and server is None else {}
                voter = WeightedVoter.from_pretrained(head, model=model, server=server, **engine_options)
            if system is not None:
                voter.prompt = voter.prompt.with_system(system)
            evaluation = last_evaluation(folder, runs, model)
        except (ValueError, OSError) as error:
            _fail(str(error))
        config = voter.config
        assert config is not None  # from_pretrained read it
        site = Site(
            voter=voter,
            recordings=Recordings(opened),
            about=ABOUT_POCKET if is_pocket else ABOUT_ANY,
            examples=POCKET_EXAMPLES if is_pocket else (),
            max_traces=max_traces,
            max_running=max_running,
            max_waiting=max_waiting,
            evaluation=evaluation,
        )
        if traces is None:
            limit = max_tokens or int(config.sampling.get("max_tokens", 1024))
            position = min(config.positions[0], limit - 1)
            site.defaults = Choices(
                n=min(32, max_traces),
                temperature=float(config.sampling.get("temperature", 1.0)),
                keep=config.keep,
                at=position,
            )
            reliability = site.reliability
            site.runner = LiveRunner(
                voter,
                site.recordings,
                max_tokens=limit,
                score_every=max(1, position // 4),
                reference=pocket_reference if is_pocket else lambda _question: None,
                on_end=lambda state: reliability.add(state.traces),
                endpoint=endpoint,
                system=system,
                served=served(endpoint, head, model, server or ()),
            )
            # The page opens at once; the first question waits for the model if it has to.
            threading.Thread(target=site.runner.warm_up, name="arrol-load", daemon=True).start()
        page = build(site)
        # Ended by a service manager, it closes and tidies up as with Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            page.launch(server_name=host, server_port=port, **launch_options())
        except OSError as error:
            _fail(f"{error}; choose another --port")
        finally:
            voter.close()


def find_endpoint(servers: Sequence[str]) -> Endpoint | None:
    """The ``arrol-serve`` among the servers that were named, None when there is none.

    Raises:
        InputError: when others were named beside it, or it refuses the key.
    """
    found = [Endpoint.find(url, os.environ.get("ARROL_SERVER_KEY", "")) for url in servers]
    if any(found) and len(found) > 1:
        raise InputError("name one arrol-serve alone: it shares the work among servers itself")
    return found[0] if found else None


def served(endpoint: Endpoint | None, head: str, model: str | None, servers: Sequence[str]) -> Served:
    """Where an app asks for what the page shows: the endpoint, or the one that a command would start."""
    if endpoint is not None:
        return Served(endpoint.url, endpoint.model)
    options = [*(["--model", model] if model else ()), *(word for url in servers for word in ("--server", url))]
    start = shlex.join(["arrol-serve", head, *options])
    return Served(DEFAULT_ENDPOINT, start=start)


def pocket_reference(question: str) -> str:
    """The right answer of a pocket question.

    Raises:
        ValueError: when it is none.
    """
    return str(task.solve(question.strip())[1])


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
