"""Rollouts through a served engine: the same run as with an engine in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arrol_train.config import ConfigError
from arrol_train.rl import run
from arrol_tts.pocket import POCKET_HEAD
from tests.engine.test_server import start
from tests.training.conftest import restore_pocket
from tests.training.test_rl import assert_same_run, config

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")
pytest.importorskip("trl")


@pytest.mark.slow
def test_a_run_through_a_server_is_the_run_in_this_process(
    vllm_engine: VLLMEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    server = start(tmp_path, "trained", "arrol_tts.engine.vllm_plugin.serve", str(POCKET_HEAD))
    try:
        server.wait()
        run(config(servers=[server.url], engine={"shared_folder": str(tmp_path)}), tmp_path / "served")
    finally:
        server.kill()
    run(config(), tmp_path / "here", vllm_engine)
    restore_pocket(vllm_engine)
    assert_same_run(tmp_path / "served", tmp_path / "here")


def test_as_many_servers_as_processes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 servers for 1 processes"):
        run(config(servers=["http://localhost:1", "http://localhost:2"]), tmp_path / "out")
