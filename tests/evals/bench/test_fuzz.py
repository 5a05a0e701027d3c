"""The hostile requests of bench-fuzz, without a server; ``test_server.py`` sends some to one."""

from __future__ import annotations

import os
from typing import Any

from arrol_tts.engine.vllm_plugin.middleware import CHECKED_PATHS
from evals.bench.fuzz import Memory, acceptable, hostile_bodies, hostile_specs
from evals.reporting.sections.fuzz import SECTION


def test_hostile_specs_are_the_same_in_every_run_and_some_are_good() -> None:
    specs = list(hostile_specs(400))
    assert specs == list(hostile_specs(400))
    assert len(specs) == 403
    good = sum(map(acceptable, specs))
    assert 80 < good < 320


def test_hostile_bodies_go_to_every_endpoint_that_is_looked_at() -> None:
    bodies = list(hostile_bodies(200))
    assert bodies == list(hostile_bodies(200))
    assert {path for path, _ in bodies} == set(CHECKED_PATHS)
    assert max(len(body) for _, body in bodies) > 1 << 21


def test_memory_counts_this_process() -> None:
    with Memory(os.getpid()) as memory:
        assert memory.now() > 10 << 20
    assert memory.most > 10 << 20


def test_the_page_says_what_the_server_failed_on() -> None:
    latency = {"requests": 9, "median_ms": 10.0, "p99_ms": 20.0, "worst_ms": 30.0}
    figures: dict[str, Any] = {
        "specs": 5003,
        "specs_answered_otherwise": 0,
        "answers": {
            "specs": {"200": 2000, "400": 3003},
            "bodies": {"400": 498, "500": 2},
            "bodies without the key": {"401": 500},
        },
        "requests_per_second": {"specs": 100.0, "bodies": 50.0, "bodies without the key": 500.0},
        "neighbour": {"alone": latency, "specs": latency},
        "memory_mb": {"before": 1000, "after bodies without the key": 1010, "most": 1020},
        "healthy_afterwards": True,
    }
    *_, meaning = SECTION.show(figures)
    assert "The engine outlived all of it. 0 of 5,003 specs" in meaning
    assert "requests that the server failed on: 2 with 500. Its processes held 1,000 MB before" in meaning
