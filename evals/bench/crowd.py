"""A crowd of clients that connect, ask and vanish at random, as `evals.bench.serve` lets loose on an endpoint."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from arrol_tts.pocket import questions

from .demo import resident_mib

STAY = 0.1
"""Share of the requests whose client waits for the answer."""
PATIENCE, PAUSE = 5.0, 5.0
"""Seconds that the others wait at most, and that everybody pauses at most between two requests."""
MAX_N = 6
IDLE_SECONDS = 5.0
SAMPLE_SECONDS = 2.0


@dataclass(slots=True)
class Crowd:
    """Who comes, and what became of them.

    Attributes:
        clients: at the same time.
        seconds: that they come and go, after the warm-up.
        warm_seconds: of the same before that, from which on memory is compared.
        counts: ``asked``, ``vanished``, ``answered`` requests.
        errors: what those who stayed met instead of an answer, each once.
    """

    clients: int = 500
    seconds: float = 180.0
    warm_seconds: float = 60.0
    counts: Counter[str] = field(default_factory=Counter)
    errors: set[str] = field(default_factory=set)


async def come_and_go(crowd: Crowd, url: str, process: int, *, seed: int = 0) -> dict[str, Any]:
    """Let a crowd loose, and look at what it leaves behind.

    Args:
        crowd: who comes.
        url: of an endpoint that lets all of them wait.
        process: its number, whose memory and processor time are read.
        seed: of what they do.
    """
    until = time.monotonic() + crowd.warm_seconds + crowd.seconds
    # Nothing is kept alive: each request has a connection of its own.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    http = httpx.AsyncClient(base_url=url, limits=limits, timeout=None)
    clients = [
        asyncio.create_task(_come_and_go(crowd, http, until, random.Random(seed * 10_000 + number)))
        for number in range(crowd.clients)
    ]
    began, memory = time.monotonic(), []
    while time.monotonic() < until:
        mib = await asyncio.to_thread(resident_mib, process)
        memory.append((time.monotonic() - began, mib))
        await asyncio.sleep(SAMPLE_SECONDS)
    await asyncio.gather(*clients)
    drained = time.monotonic() - until
    await asyncio.sleep(1.0)  # what was aborted last ends with its step
    busy = processor_seconds(process)
    await asyncio.sleep(IDLE_SECONDS)
    busy = processor_seconds(process) - busy
    page = (await http.get("/metrics")).text
    await http.aclose()
    settled = [mib for seconds, mib in memory if seconds >= crowd.warm_seconds]
    third = max(1, len(settled) // 3)
    return {
        "clients": crowd.clients,
        "seconds": crowd.seconds,
        **{f"{name}_requests": crowd.counts[name] for name in ("asked", "vanished", "answered", "failed")},
        "errors_of_those_who_stayed": len(crowd.errors),
        "error_messages": sorted(crowd.errors),
        "seconds_until_all_were_answered": round(drained, 1),
        "left_running": figure(page, "arrol_requests_running"),
        "left_waiting": figure(page, "arrol_requests_waiting"),
        "busy_share_afterwards": round(busy / IDLE_SECONDS, 4),
        "memory_mib_by_time": [
            [round(seconds), round(mib)] for seconds, mib in memory[:: max(1, len(memory) // 12)]
        ],
        "memory_mib": round(median(settled[-third:])),
        "memory_growth_mib": round(median(settled[-third:]) - median(settled[:third]), 1),
    }


async def _come_and_go(crowd: Crowd, http: httpx.AsyncClient, until: float, chance: random.Random) -> None:
    """One of them, request after request."""
    await asyncio.sleep(chance.uniform(0, PAUSE))
    asked = [question.text for question in islice(questions("test", chance.randrange(1 << 20)), 8)]
    while time.monotonic() < until:
        body = {
            "messages": [{"role": "user", "content": chance.choice(asked)}],
            "seed": chance.randrange(1000),
            "stream": chance.random() < 0.5,
            "arrol": {"n": chance.randint(1, MAX_N)},
        }
        patience = None if chance.random() < STAY else chance.uniform(0, PATIENCE)
        crowd.counts["asked"] += 1
        try:
            async with asyncio.timeout(patience):
                await _ask(http, body)
            crowd.counts["answered"] += 1
        except TimeoutError:
            crowd.counts["vanished"] += 1
        except Exception as error:
            crowd.counts["failed"] += 1
            crowd.errors.add(f"{type(error).__name__}: {error}"[:300])
        await asyncio.sleep(chance.uniform(0, PAUSE))


async def _ask(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """Ask, and check that the answer is whole.

    Raises:
        ValueError: when it is not.
    """
    response = await http.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        raise ValueError(f"HTTP {response.status_code}: {response.text}")
    if body["stream"]:
        if not response.text.endswith("data: [DONE]\n\n") or '"finish_reason":"' not in response.text:
            raise ValueError(f"the stream broke off: {response.text[-200:]}")
    elif len(response.json()["arrol"]["samples"]) != body["arrol"]["n"]:
        raise ValueError(f"samples are missing: {response.text[:200]}")


def processor_seconds(process: int) -> float:
    """What a process has computed so far, all its threads together."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def figure(page: str, name: str) -> float:
    """A figure without labels of a page for Prometheus."""
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} "))
