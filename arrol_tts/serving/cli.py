"""``arrol-serve``: start the endpoint."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from arrol_tts.calibration import AnswerCalibration
from arrol_tts.consensus import Consensus
from arrol_tts.errors import ArrolError, InputError
from arrol_tts.head_config import QualityHeadConfig, read_head_config, resolve_head
from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL
from arrol_tts.serving.queue import FairQueue
from arrol_tts.serving.runner import Runner
from arrol_tts.serving.settings import Settings, VoteDefaults
from arrol_tts.voting import METHODS, resolve_method
from arrol_tts.waves import Waves

if TYPE_CHECKING:
    from arrol_tts.engine.base import Engine

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    head: Annotated[str | None, typer.Argument(help="quality head: folder or hub id, or pocket")] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(
            help="URL of a vLLM server with this head, or without a head of any OpenAI-compatible one; repeatable"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="language model instead of the head's own")] = None,
    served_name: Annotated[str | None, typer.Option(help="what clients call the model")] = None,
    engine: Annotated[
        str, typer.Option(help="of a model that is loaded here: auto, vllm or transformers")
    ] = "auto",
    engine_option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for the engine, such as tensor_parallel_size=2; repeatable"),
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on", min=1, max=65535)] = 8001,
    n: Annotated[int, typer.Option(help="samples of a request that does not say", min=1)] = 32,
    method: Annotated[str | None, typer.Option(help="how they vote: quality with a head, else majority")] = None,
    keep: Annotated[float | None, typer.Option(help="share of samples to keep, by default the head's")] = None,
    start: Annotated[int | None, typer.Option(help="ask in waves, the first of so many samples", min=1)] = None,
    step: Annotated[int | None, typer.Option(help="samples of each further wave", min=1)] = None,
    certainty: Annotated[float | None, typer.Option(help="waves end when the vote is so sure")] = None,
    consensus: Annotated[float | None, typer.Option(help="share of the vote at which the rest ends")] = None,
    min_confidence: Annotated[float | None, typer.Option(help="below it the vote abstains", min=0, max=1)] = None,
    equality: Annotated[
        str | None, typer.Option(help="what makes two answers one: math, text, exact, choice or json")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="JSON file of an AnswerCalibration: confidences become probabilities")
    ] = None,
    max_n: Annotated[int, typer.Option(help="samples of a request at most", min=1)] = 64,
    max_tokens: Annotated[int, typer.Option(help="tokens of a sample at most", min=1)] = 4096,
    max_body: Annotated[int, typer.Option(help="bytes of a request at most", min=1024)] = 8 << 20,
    max_running: Annotated[int, typer.Option(help="requests that are sampled at once; others wait", min=1)] = 32,
    max_waiting: Annotated[int, typer.Option(help="requests that wait at most; others get 429", min=0)] = 256,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="file of API keys, NAME KEY in each line; or one key in ARROL_API_KEY; none: open to all"
        ),
    ] = None,
    log_contents: Annotated[
        bool, typer.Option(help="write what was asked and answered into the access log")
    ] = False,
) -> None:
    """Serve votes behind OpenAI's API, on http://127.0.0.1:8001/v1."""
    import uvicorn

    from arrol_tts.serving.app import make_app
    from arrol_tts.serving.spans import export_spans

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("arrol_tts.serving").setLevel(logging.INFO)
    # oneDNN keeps a compiled kernel for every batch size that comes up, by default so many that memory grows for
    # hours.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    try:
        keys = read_keys(api_keys)
        vote = VoteDefaults(
            n=n, method=method or ("quality" if head else "majority"), keep=keep, start=start, step=step,
            certainty=certainty, consensus=consensus, min_confidence=min_confidence, equality=equality,  # type: ignore[arg-type]
        )  # fmt: skip
        config = None if head is None else read_head_config(resolve_head(head))
        check_defaults(vote, max_n, config)
        if served_name is not None and (not served_name or "@" in served_name):
            raise InputError(f"--served-name is {served_name!r}; it must be a name without @")
        fitted = None if calibration is None else read_calibration(calibration)
        options = dict(_pair(text) for text in engine_option or ())
        end_spans = export_spans()
        loaded = load(head, model=model, server=server, engine=engine, options=options)
    except ValidationError as error:
        first = error.errors()[0]
        _fail(f"--{first['loc'][0]} is {first['input']!r}: {first['msg']}".replace("_", "-"))
    except (ValueError, OSError, ArrolError) as error:
        _fail(str(error))
    settings = Settings(
        model=served_name or name_of(loaded.model), vote=vote, max_n=max_n, max_tokens=max_tokens,
        max_body=max_body, max_running=max_running, max_waiting=max_waiting, keys=keys, log_contents=log_contents,
    )  # fmt: skip
    runner = Runner(loaded, config, FairQueue(max_running, max_waiting), fitted)
    try:
        if server is None:
            runner.warm_up()
        typer.echo(f"{settings.model} on http://{host}:{port}/v1", err=True)
        uvicorn.run(
            make_app(runner, settings),
            host=host,
            port=port,
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
    finally:
        loaded.close()
        end_spans()


def load(
    head: str | None, *, model: str | None, server: list[str] | None, engine: str, options: dict[str, Any]
) -> Engine:
    """The engine: a model that is loaded here, or servers.

    Raises:
        InputError: when there is neither, or they do not fit the head.
        ServerError: when no server answers.
    """
    from arrol_tts.engine.load import load_engine

    if head is None and model is None and server is None:
        raise InputError("name a quality head (arrol-serve pocket), or --model, or --server")
    is_pocket = head is not None and resolve_head(head) == POCKET_HEAD and model is None and server is None
    if is_pocket:
        options = {"max_model_len": 512} | options
    if server is not None and "api_key" not in options and (key := os.environ.get("ARROL_SERVER_KEY")):
        options = options | {"api_key": key}
    return load_engine(model, head=head, engine=engine, server=server, **options)  # type: ignore[arg-type]


def check_defaults(vote: VoteDefaults, max_n: int, config: QualityHeadConfig | None) -> None:
    """Refuse defaults that no request could be voted on by.

    Raises:
        InputError: naming the option.
    """
    if vote.n > max_n:
        raise InputError(f"--n is {vote.n}, more than --max-n {max_n}: lower one or raise the other")
    name, _ = resolve_method(vote.method, {})
    if config is None and "scores" in METHODS[name].needs:
        raise InputError(f"--method {name} needs a quality head: name one, or use majority or deepconf")
    if vote.keep is not None and not 0 < vote.keep <= 1:
        raise InputError(f"--keep is {vote.keep}; it must be in (0, 1]")
    if vote.keep not in (None, 1) and config is None:
        raise InputError("--keep needs a quality head: name one")
    if vote.consensus not in (None, 1):
        try:
            Consensus(vote.consensus)
        except InputError as error:
            raise InputError(f"--consensus: {error}") from None
    given = {name: getattr(vote, name) for name in ("start", "step", "certainty")}
    Waves(**{name: value for name, value in given.items() if value is not None})


def name_of(model: str) -> str:
    """What clients call a model, unless the server was told.

    Args:
        model: a folder, whose name it is; else the hub's id, or what other servers call it, as it is.
    """
    if Path(model).resolve() == POCKET_MODEL.resolve():
        return "pocket"
    found = Path(model).resolve().name if Path(model).is_dir() else model
    return found.replace("@", "-") or "arrol"


def read_keys(path: Path | None) -> dict[str, str]:
    """Names by key: of a file, and of the environment.

    Raises:
        InputError: for a line that is no name and key.
    """
    keys = {}
    if key := os.environ.get("ARROL_API_KEY"):
        keys[key] = "default"
    for number, line in enumerate(path.read_text().splitlines() if path else (), start=1):
        parts = line.split()
        if not parts or line.lstrip().startswith("#"):
            continue
        if len(parts) != 2 or parts[1] in keys:
            raise InputError(f"{path}, line {number}: write a name and a key that no other line has")
        keys[parts[1]] = parts[0]
    if path is not None and not keys:
        raise InputError(f"{path} has no key: write a name and a key in each line")
    return keys


def read_calibration(path: Path) -> AnswerCalibration:
    """An AnswerCalibration, as its ``to_dict`` was written.

    Raises:
        InputError: when it is none.
    """
    try:
        state = json.loads(path.read_text())
        return AnswerCalibration.from_dict(state)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no calibration: {error}") from None


def _pair(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found or not name.isidentifier():
        raise InputError(f"--engine-option {text!r}: write NAME=VALUE, such as max_model_len=4096")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
