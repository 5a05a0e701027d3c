"""What hostile requests do to a server, and to who asks beside them: ``python -m evals.bench.fuzz``.

A server of the pocket model, started by the documented command with an API key, gets thousands of specs (valid
ones, ones with wrong values in every place, broken text) and hundreds of raw bodies (JSON of wrong shapes, other
encodings, deep nesting, megabytes, no JSON at all) over HTTP, with the key and without. Measured: what it answers,
what its processes hold in memory, and how long a well-behaved client waits that asks for one scored trace after
the other: alone, beside as many well-formed requests, and beside the hostile ones. All of it is made up from a
seed, on this machine, with a synthetic model; latencies are those of two cores that client and server share.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import typer

from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.engine.vllm_plugin.middleware import CHECKED_PATHS, MAX_SPEC_BODY_BYTES
from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL
from arrol_tts.stopping import TraceSpec

from . import write_result
from .servers import healthy, serving

SEED = 0
KEY = "benchmark"
AT_ONCE = 32
ALONE = 100
CHAT = "/v1/chat/completions"

app = typer.Typer(add_completion=False)


def hostile_specs(count: int, seed: int = SEED) -> Iterator[str]:
    """Specs as JSON text, for ``vllm_xargs``; the same ones in every run.

    Args:
        count: of specs made up; three more are far too deep, too long a number, and too long a text.
        seed: of the choices.
    """
    rng = random.Random(seed)
    wrong: list[Any] = [None, True, -1, 0, 1, 7, 2**31, 2**70, 1.5, -0.0, 1e400, float("nan"), "", "x" * 300]
    wrong += ["\ud800", "\0", [], {}, [[]], [None], {"a": 1}, ["1"], [1] * 65, "group", "keep_share", [1, 2]]
    wrong += [["\ud8001"], ["€" * 256], ["\0"], [" "], [{"rule": "threshold", "at": 1, "below": 0}] * 9]
    rules: list[dict[str, Any]] = [
        {"rule": "threshold", "at": 1, "below": 0.5},
        {"rule": "keep_share", "at": 1, "share": 0.5},
        {"rule": "budget", "at": 1, "tokens": 9, "length": 3},
        {"rule": "confidence_floor", "warmup": 2, "keep": 0.9, "window": 2},
    ]
    for i in range(count):
        spec: dict[str, Any] = {"group": f"g{rng.randrange(9)}", "size": rng.randint(1, 9), "score_at": [1, 2]}
        spec |= {"score_finish": rng.random() < 0.5, "confidence": rng.random() < 0.5}
        spec["rules"] = [dict(rule) for rule in rng.sample(rules, rng.randrange(3))]
        for _ in range(rng.randrange(3)):
            place: Any = rng.choice([spec, *(r for r in spec["rules"] if isinstance(r, dict))])
            place[rng.choice([*place, "bogus", "rule", "score_every", "stop", "features_at"])] = rng.choice(wrong)
            if not isinstance(spec.get("rules"), list):
                break
        text = json.dumps(spec)
        if i % 4 == 3:  # cut, repeat or overwrite a piece
            a, b = sorted(rng.sample(range(len(text) + 1), 2))
            text = rng.choice([text[:a], text[:a] + text[b:], text[:b] + text[a:], text[:a] + "\x00]{" + text[b:]])
        yield text
    yield "[" * 100_000
    yield '{"size": ' + "9" * 5000 + "}"
    yield '{"group": "' + "x" * (MAX_SPEC_BODY_BYTES // 2) + '"}'


def acceptable(text: str) -> bool:
    """Whether a spec is one that a server with everything allowed answers."""
    try:
        TraceSpec.parse(text)
    except ValueError:
        return False
    return True


def hostile_bodies(count: int, seed: int = SEED) -> Iterator[tuple[str, bytes]]:
    """Path and body of requests, few of which can be answered; the same ones in every run."""
    rng = random.Random(seed)
    odd: list[Any] = [None, True, -1, 0, 2**70, 1e400, "", "\ud800", "x" * 3000, [], {}, [None], [[1]], {"a": {}}]
    fields = ["n", "prompt", "messages", "max_tokens", "stop", "seed", "temperature", "logprobs", "vllm_xargs"]
    fields += ["stream", "logit_bias", "min_tokens", "stop_token_ids", "sampling_params", "kv_transfer_params"]
    for i in range(count):
        spec = rng.choice(['{"score_at": [1]}', "{", '{"stop": ["\\ud8001"]}', '{"rules": 3}', "", "\ud800"])
        request: dict[str, Any] = chat("2") | {"prompt": "2", "vllm_xargs": {CONFIG_KEY: spec}}
        for _ in range(rng.randrange(4)):
            request[rng.choice(fields)] = rng.choice(odd)
        body = json.dumps(request).encode()
        kind = i % 10
        if kind == 1:
            body = rng.randbytes(rng.randrange(2000))
        elif kind == 2:
            body = body[: rng.randrange(len(body))]
        elif kind == 3:
            body = body.decode().encode(rng.choice(["utf-16", "utf-32", "utf-16-le", "utf-8-sig"]))
        elif kind == 4:
            body = rng.choice([b"[", b'{"a":', b'{"arrol":']) * rng.randrange(1, 50_000)
        elif kind == 5:
            spot = rng.randrange(len(body))
            body = body[:spot] + rng.randbytes(3) + body[spot:]
        elif kind == 6:
            body = body[:-1] + b', "padding": "' + b"x" * rng.choice([1000, 2 * MAX_SPEC_BODY_BYTES]) + b'"}'
        elif kind == 7:
            body = body.replace(b"arrol", rng.choice([b"\\u0061rrol", b"arro\\u006C", b"arrol\\u0000"]))
        yield rng.choice(CHECKED_PATHS), body


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """Body of a chat completion of the pocket model: one token, unless fields say otherwise."""
    return {
        "model": str(POCKET_MODEL),
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 1,
    } | fields


def with_spec(text: str) -> bytes:
    """Body of a chat completion with a spec."""
    return json.dumps(chat("2", vllm_xargs={CONFIG_KEY: text})).encode()


async def ask_all(url: str, requests: Sequence[tuple[str, bytes]], key: str | None) -> list[int]:
    """Statuses of requests, so many at once; 0 where the connection broke off.

    Args:
        url: of the server.
        requests: path and body of each.
        key: sent as bearer token.
    """
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    limit = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(timeout=300, headers=headers, base_url=url) as client:

        async def ask(path: str, body: bytes) -> int:
            async with limit:
                try:
                    return (await client.post(path, content=body)).status_code
                except httpx.TransportError:
                    return 0

        return list(await asyncio.gather(*(ask(path, body) for path, body in requests)))


class Neighbour:
    """A client that asks for one short scored trace after the other, and takes the time.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=300)

    def ask(self) -> float:
        """Seconds of one trace.

        Raises:
            RuntimeError: when it does not come with its log.
        """
        body = chat("2+3*4", max_tokens=16, vllm_xargs={CONFIG_KEY: '{"score_finish": true}'})
        start = time.perf_counter()
        reply = self._client.post(CHAT, json=body).json()
        seconds = time.perf_counter() - start
        if len((reply.get("kv_transfer_params") or {}).get(CONFIG_KEY, {}).get("scores", ())) != 1:
            raise RuntimeError(f"the well-behaved neighbour got {str(reply)[:500]}")
        return seconds

    @contextmanager
    def beside(self) -> Iterator[list[float]]:
        """Asks all the while; the list fills with seconds."""
        seconds: list[float] = []
        failures: list[Exception] = []
        over = threading.Event()

        def work() -> None:
            try:
                while not over.is_set():
                    seconds.append(self.ask())
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield seconds
        finally:
            over.set()
            thread.join()
        if failures:
            raise failures[0]


class Memory:
    """Resident bytes of a process and all its children, read twice a second; the most of them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def now(self) -> int:
        """Of this moment."""
        pids, found = [self._pid], 0
        while pids:
            process = Path(f"/proc/{pids.pop()}")
            try:
                found += int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                for task in process.glob("task/*/children"):
                    pids += map(int, task.read_text().split())
            except (OSError, IndexError):  # it has just ended
                continue
        return found

    def _work(self) -> None:
        while not self._over.wait(0.5):
            self.most = max(self.most, self.now())

    def __enter__(self) -> Memory:
        self.most = self.now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """A server of the pocket model that allows every signal and asks for a key; its URL and process."""
    options = ["--allow=confidence,features", "--host=127.0.0.1", f"--api-key={KEY}"]
    options += ["--max-model-len=512", "--max-num-seqs=64", f"--kv-cache-memory-bytes={64 << 20}"]
    with serving("arrol_tts.engine.vllm_plugin.serve", str(POCKET_HEAD), *options) as (url, process):
        yield url, process.pid


def _latency(seconds: Sequence[float]) -> dict[str, Any]:
    milliseconds = 1e3 * np.array(seconds)
    return {
        "requests": len(seconds),
        "median_ms": round(float(np.median(milliseconds)), 1),
        "p99_ms": round(float(np.quantile(milliseconds, 0.99)), 1),
        "worst_ms": round(float(milliseconds.max()), 1),
    }


def _counts(statuses: Sequence[int]) -> dict[str, int]:
    return {str(status): count for status, count in sorted(Counter(statuses).items())}


@app.command()
def main(
    specs: int = typer.Option(5000, help="specs made up"), bodies: int = typer.Option(500, help="raw bodies")
) -> None:
    """Ask, count, and write evals/results/fuzz.json."""
    figures: dict[str, Any] = {"synthetic": True, "specs": specs + 3, "bodies": bodies, "at_once": AT_ONCE}
    texts = list(hostile_specs(specs))
    hostile = [(CHAT, with_spec(text)) for text in texts]
    good = [(CHAT, with_spec('{"score_at": [1], "score_finish": true, "confidence": true}'))] * (specs // 10)
    raw = list(hostile_bodies(bodies))
    with server() as (url, pid), Memory(pid) as memory:
        neighbour = Neighbour(url)
        for _ in range(ALONE // 5):
            neighbour.ask()
        figures["neighbour"] = {"alone": _latency([neighbour.ask() for _ in range(ALONE)])}
        figures["memory_mb"] = {"before": memory.now() >> 20}
        for name, requests, key in (
            ("well-formed requests", good, KEY),
            ("specs", hostile, KEY),
            ("bodies", raw, KEY),
            ("specs without the key", hostile[: len(raw)], None),
            ("bodies without the key", raw, None),
        ):
            start = time.perf_counter()
            with neighbour.beside() as seconds:
                statuses = asyncio.run(ask_all(url, requests, key))
            took = time.perf_counter() - start
            figures["neighbour"][name] = _latency(seconds)
            figures.setdefault("answers", {})[name] = _counts(statuses)
            figures.setdefault("requests_per_second", {})[name] = round(len(requests) / took, 1)
            figures["memory_mb"][f"after {name}"] = memory.now() >> 20
            if name == "specs":
                expected = [200 if acceptable(text) else 400 for text in texts]
                figures["specs_answered_otherwise"] = sum(a != b for a, b in zip(statuses, expected, strict=True))
            typer.echo(f"{name}: {_counts(statuses)}, neighbour {figures['neighbour'][name]}")
        figures["memory_mb"]["most"] = memory.most >> 20
        figures["healthy_afterwards"] = healthy(url) and neighbour.ask() > 0
    typer.echo(write_result("fuzz", figures, [SEED]))


if __name__ == "__main__":
    app()
