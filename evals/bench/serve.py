"""What the endpoint costs beside the library: ``python -m evals.bench.serve``.

Pocket test questions (synthetic), 32 samples each. Ways of asking take turns question by question, so that
what else the machine does falls on all of them:

- ``solve``: `WeightedVoter.solve` in this process.
- ``endpoint``: the same vote from ``arrol-serve pocket``, a process of its own, over HTTP.
- ``endpoint_majority``: majority over samples none of which is pruned, from there.
- ``by_hand``: the same work without us: vLLM's own server is asked for 32 choices, and they are counted here.
- ``waves`` and ``one``: the vote in waves from the endpoint, and a single choice from vLLM's server, for what a
  vote costs beside them.

``gateway_overhead_ratio`` is the median over questions of the endpoint's seconds by those of ``solve``;
``gateway_overhead_ratio_at_once`` the same over rounds in which 32 clients ask at once, where requests a second,
p50 and p99 are measured, too. Then a crowd of clients comes and goes (`evals.bench.crowd`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from arrol_tts import Trace, VoteResult, WeightedVoter, vote
from arrol_tts.answers import answers_equal, extract_answer
from arrol_tts.pocket import POCKET_MODEL, PocketQuestion, questions

from . import write_result
from .crowd import Crowd, come_and_go
from .servers import serving

SEED = 0
N = 32
WAVES = {"start": 2, "step": 1, "certainty": 0.9}
"""As ``make bench-pocket`` chose them on training questions."""
LIMITS = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 256}
"""The pocket head's sampling, which vLLM's server has to be told."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question.

    Attributes:
        text: the answer, None for none.
        tokens: that all samples wrote.
        seconds: that it took.
    """

    text: str | None
    tokens: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        questions: asked one after the other, by every way.
        clients: that ask at once.
        rounds: of that, by every way.
    """

    questions: int = 24
    clients: int = 32
    rounds: int = 3


Ask = Callable[[str, int], Awaitable[Answer]]
"""``(question, seed) -> answer``."""


def main(
    seconds: Annotated[int, typer.Option(help="how long the crowd comes and goes", min=10)] = 180,
    quick: Annotated[bool, typer.Option(help="a few questions, to see that it works; written nowhere")] = False,
) -> None:
    """Measure, and write evals/results/serve.json."""
    # With a model so small, threads only wait on each other; and three engines share the cores.
    os.environ.update({"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    load = os.getloadavg()[0]
    figures: dict[str, Any] = {"synthetic": True, "samples": N, "load_average_before": load}
    if load > 0.5:
        figures["note"] = "other work ran on the machine at the same time; ways of asking took turns"
    size = Size(questions=2, clients=4, rounds=1) if quick else Size()
    with plain_server() as plain, arrol_serve() as (endpoint, _):
        # Only now, because an engine in this process sets variables that the servers would inherit.
        voter = WeightedVoter.from_pretrained("pocket", engine="vllm", max_model_len=512)
        assert voter.engine is not None  # loaded by asking for it
        figures |= asyncio.run(measure(ways(voter, endpoint, plain), size))
        voter.close()
    crowd = Crowd(clients=20, seconds=10, warm_seconds=5) if quick else Crowd(seconds=seconds)
    with arrol_serve("--max-waiting", str(crowd.clients), "--n", "4") as (endpoint, process):
        figures["crowd"] = asyncio.run(come_and_go(crowd, endpoint, process.pid))
    for name, value in figures.items():
        typer.echo(f"{name:34} {value}")
    if not quick:
        typer.echo(f"wrote {write_result('serve', figures, [SEED])}")


# --- servers --------------------------------------------------------------------------------------


arrol_serve = partial(serving, "arrol_tts.serving.cli", "pocket")
"""``arrol-serve pocket``: its address, and its process."""


@contextmanager
def plain_server() -> Iterator[str]:
    """vLLM's own server with the pocket model, as it is without us."""
    options = {
        "--model": str(POCKET_MODEL), "--served-model-name": "pocket", "--host": "127.0.0.1",
        "--max-model-len": "512", "--dtype": "float32", "--kv-cache-memory-bytes": str(1 << 30),
        "--distributed-executor-backend": "uni",
    }  # fmt: skip
    flags = ("--enforce-eager", "--no-async-scheduling", "--disable-uvicorn-access-log")
    with serving("vllm.entrypoints.openai.api_server", *itertools.chain(*options.items()), *flags) as (url, _):
        yield url


# --- ways of asking -------------------------------------------------------------------------------


def ways(voter: WeightedVoter, endpoint: str, plain: str) -> dict[str, Ask]:
    """All ways of asking, by name."""

    async def solve(question: str, seed: int) -> Answer:
        return _of(await voter.asolve(question, N, seed=seed))

    return {
        "solve": solve,
        "endpoint": through(endpoint, {"n": N}),
        "endpoint_majority": through(endpoint, {"n": N, "method": "majority", "keep": 1}),
        "by_hand": by_hand(plain, N),
        "waves": through(endpoint, {"n": N, **WAVES}),
        "one": by_hand(plain, 1),
    }


def through(url: str, options: Mapping[str, Any]) -> Ask:
    """Ask the endpoint."""

    async def ask(question: str, seed: int) -> Answer:
        reply = await _post(url, {"messages": _said(question), "seed": seed, "arrol": dict(options)})
        return Answer(reply["arrol"]["answer"], reply["usage"]["completion_tokens"])

    return ask


def by_hand(url: str, n: int) -> Ask:
    """Ask vLLM's server for n choices, and count what they say."""

    async def ask(question: str, seed: int) -> Answer:
        body = {"model": "pocket", "messages": _said(question), "n": n, "seed": seed, **LIMITS}
        reply = await _post(url, body)
        texts = [choice["message"]["content"] for choice in reply["choices"]]
        traces = [Trace("q", i, text, answer=extract_answer(text)) for i, text in enumerate(texts)]
        return Answer(vote(traces, "majority").answer, reply["usage"]["completion_tokens"])

    return ask


async def _post(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    response = await _client().post(f"{url}/v1/chat/completions", json=body)
    if response.status_code != 200:
        raise RuntimeError(f"{url} answers {response.status_code}: {response.text[:500]}")
    reply: dict[str, Any] = response.json()
    return reply


def _client() -> httpx.AsyncClient:
    """One of the running event loop, which keeps its connections as clients of OpenAI's API do."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = httpx.AsyncClient(timeout=600)
    return _clients[loop]


_clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}


def _said(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def _of(result: VoteResult) -> Answer:
    return Answer(result.answer, result.tokens.generated)


# --- measuring ------------------------------------------------------------------------------------


async def measure(arms: Mapping[str, Ask], size: Size) -> dict[str, Any]:
    """All ways alone, and those of equal work with all clients at once."""
    asked = list(itertools.islice(questions("test", SEED), max(size.questions, size.clients)))
    for ask in arms.values():  # the first time is slow
        await asyncio.gather(*(ask(question.text, SEED) for question in asked[:4]))
    alone: dict[str, list[Answer]] = {name: [] for name in arms}
    for number, question in enumerate(asked[: size.questions]):
        for name in _turned(list(arms), number):
            alone[name].append(await _timed(arms[name], question))
    together = [name for name in arms if name not in ("waves", "one")]
    seconds: dict[str, list[float]] = {name: [] for name in together}
    latencies: dict[str, list[float]] = {name: [] for name in together}
    for number in range(size.rounds):
        for name in _turned(together, number):
            began = time.perf_counter()
            answers = await asyncio.gather(*(_timed(arms[name], question) for question in asked[: size.clients]))
            seconds[name].append(time.perf_counter() - began)
            latencies[name] += [answer.seconds for answer in answers]
    figures = summarise(asked[: size.questions], alone, seconds, latencies)
    return {"clients": size.clients, **figures}


async def _timed(ask: Ask, question: PocketQuestion) -> Answer:
    began = time.perf_counter()
    answer = await ask(question.text, SEED)
    return Answer(answer.text, answer.tokens, time.perf_counter() - began)


def _turned(names: list[str], number: int) -> list[str]:
    return names[number % len(names) :] + names[: number % len(names)]


def summarise(
    asked: Sequence[PocketQuestion],
    alone: Mapping[str, Sequence[Answer]],
    seconds: Mapping[str, Sequence[float]],
    latencies: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """The figures.

    Args:
        asked: the questions, one after the other.
        alone: their answers by each way.
        seconds: of each round in which all clients asked at once.
        latencies: of all requests of those rounds.
    """
    ratios = _ratios([a.seconds for a in alone["endpoint"]], [a.seconds for a in alone["solve"]])
    by_hand = _ratios([a.seconds for a in alone["endpoint_majority"]], [a.seconds for a in alone["by_hand"]])
    at_once = _ratios(seconds["endpoint"], seconds["solve"])
    together = {name: _at_once(seconds[name], latencies[name]) for name in seconds}
    return {
        "gateway_overhead_ratio": round(median(ratios), 4),
        "gateway_overhead_ratio_at_once": round(median(at_once), 4),
        "gateway_requests_per_second": together["endpoint"]["requests_per_second"],
        "gateway_p50_seconds": together["endpoint"]["p50_seconds"],
        "gateway_p99_seconds": together["endpoint"]["p99_seconds"],
        "by_hand_ratio": round(median(by_hand), 4),
        "by_hand_ratio_at_once": round(median(_ratios(seconds["endpoint_majority"], seconds["by_hand"])), 4),
        "questions": len(asked),
        "rounds": len(seconds["solve"]),
        "alone": {name: _alone(asked, answers) for name, answers in alone.items()},
        "at_once": together,
        "ratio_of_each_question": [round(ratio, 4) for ratio in ratios],
        "ratio_of_each_round": [round(ratio, 4) for ratio in at_once],
    }


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _alone(asked: Sequence[PocketQuestion], answers: Sequence[Answer]) -> dict[str, float]:
    right = [
        answer.text is not None and answers_equal(answer.text, question.answer)
        for question, answer in zip(asked, answers, strict=True)
    ]
    return {
        "p50_seconds": round(median(answer.seconds for answer in answers), 4),
        "p99_seconds": round(float(np.quantile([answer.seconds for answer in answers], 0.99)), 4),
        "tokens_per_question": sum(answer.tokens for answer in answers) / len(answers),
        "accuracy": sum(right) / len(right),
    }


def _at_once(seconds: Sequence[float], latencies: Sequence[float]) -> dict[str, float]:
    return {
        "requests_per_second": round(len(latencies) / sum(seconds), 3),
        "p50_seconds": round(float(np.quantile(latencies, 0.5)), 3),
        "p99_seconds": round(float(np.quantile(latencies, 0.99)), 3),
    }


if __name__ == "__main__":
    typer.run(main)
