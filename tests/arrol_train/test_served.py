"""Training through a served engine: what it gives is what an engine in this process gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from arrol_train.heads.collect import collect
from arrol_train.rewards import pocket_reward
from arrol_train.rl.config import ConfigError
from arrol_train.rl.run import run
from arrol_tts.engine.server_engine import ServerEngine
from tests.arrol_train.conftest import restore_pocket
from tests.arrol_train.heads.test_collect import MANIFEST, QUESTIONS, N, traces_of
from tests.arrol_train.rl.tiny import assert_same_run, config
from tests.arrol_tts.engine.serving import PLUG_IN, Server, serving

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")
pytest.importorskip("trl")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        yield from serving(tmp_path_factory, "trained", *PLUG_IN)


@pytest.mark.slow
def test_a_collection_through_a_server_is_the_one_in_this_process(
    server: Server, vllm_engine: VLLMEngine, tmp_path: Path
) -> None:
    served = ServerEngine(server.url)
    for name, engine in (("served", served), ("here", vllm_engine)):
        assert collect(engine, MANIFEST, QUESTIONS, pocket_reward, tmp_path / name, n=N) == len(QUESTIONS) * N
    served.close()
    theirs, ours = traces_of(tmp_path / "served"), traces_of(tmp_path / "here")
    assert theirs.keys() == ours.keys()
    for key, trace in ours.items():
        assert (theirs[key].text, theirs[key].correct) == (trace.text, trace.correct)
        assert theirs[key].features.keys() == trace.features.keys()
        for position, vector in trace.features.items():
            np.testing.assert_allclose(theirs[key].features[position], vector, rtol=2e-3, atol=1e-3)


@pytest.mark.slow
def test_a_run_through_a_server_is_the_run_in_this_process(
    server: Server, vllm_engine: VLLMEngine, tmp_path: Path
) -> None:
    run(config(servers=[server.url], engine={"shared_folder": str(tmp_path)}), tmp_path / "served")
    run(config(), tmp_path / "here", vllm_engine)
    restore_pocket(vllm_engine)
    assert_same_run(tmp_path / "served", tmp_path / "here")


def test_as_many_servers_as_processes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 servers for 1 processes"):
        run(config(servers=["http://localhost:1", "http://localhost:2"]), tmp_path / "out")
