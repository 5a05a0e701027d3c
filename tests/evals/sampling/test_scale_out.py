"""Questions spread over several servers: one results folder, and the numbers of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts.head_config import read_head_config
from arrol_tts.pocket import POCKET_HEAD
from arrol_tts.store import TraceStore
from arrol_tts.voter import WeightedVoter
from evals.benchmarks import pocket
from evals.reporting.summary import benchmark_report
from evals.sampling.seed_samples import SeedSamples, sample_seed

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

QUESTIONS, N = 12, 4


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    from tests.arrol_tts.engine.serving import PLUG_IN, start

    folder = tmp_path_factory.mktemp("servers")
    servers = [start(folder, name, *PLUG_IN) for name in ("first", "second")]
    try:
        for server in servers:
            server.wait()
        yield [server.url for server in servers]
    finally:
        for server in servers:
            server.kill()


def run(voter: WeightedVoter, out: Path) -> SeedSamples:
    return sample_seed(
        pocket.load(QUESTIONS),
        voter,
        n=N,
        seed=0,
        keep=0.5,
        out=out,
        sampling={"temperature": 0.0, "max_tokens": 128},
    )


def test_two_servers_give_the_numbers_of_one_process(
    urls: list[str], vllm_engine: VLLMEngine, tmp_path: Path
) -> None:
    config = read_head_config(POCKET_HEAD)
    alone = WeightedVoter(vllm_engine, config=config)
    spread = WeightedVoter.from_pretrained("pocket", server=urls, max_in_flight=N)
    runs = {"alone": run(alone, tmp_path / "alone"), "spread": run(spread, tmp_path / "spread")}
    spread.close()
    texts = {
        name: sorted((t.question_id, t.sample_id, t.text) for t in TraceStore(tmp_path / name / "traces"))
        for name in runs
    }
    assert texts["alone"] == texts["spread"]
    assert len(texts["spread"]) == QUESTIONS * N
    reports = {name: benchmark_report([of], WeightedVoter(config=config)) for name, of in runs.items()}
    for name in ("votes", "samples"):
        assert _accuracies(reports["alone"][name]) == _accuracies(reports["spread"][name])


def _accuracies(figures: Any) -> Any:
    rows = figures if isinstance(figures, list) else [figures]
    return [(row.get("name"), row["accuracy"]) for row in rows]
