"""The wheel: built from the checkout, installed elsewhere, its commands run from an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT

FOLDERS = {"arrol_tts": "arrol_tts", "arrol_train": "arrol_train", "evals": "arrol_evals", "demo": "arrol_demo"}
"""Folders of the checkout, and the packages they are installed as."""
QUESTION, ANSWER = "9+9*4-4-3-5-4*5", "13"


def files_of(folder: Path) -> Iterator[Path]:
    """The files of a package's folder, without what Python and the benchmarks put there."""
    return (
        path
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", "results"}.intersection(path.parts)
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built outside the checkout: a build folder that is left there would get into the next wheel."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir={out}", str(source)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, whose dependencies are those of the tests' environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Behind its own packages, and without the .pth files there: an editable installation stays out of it.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder to run commands in, with nothing of the checkout in reach."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(installed: Path, command: str, *arguments: str, folder: Path) -> str:
    """Standard output of a command of the wheel."""
    done = subprocess.run(
        [installed / command, *arguments], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_every_module_and_data_file_is_in_the_wheel_and_nothing_else(wheel: Path) -> None:
    expected = {
        (Path(package) / path.relative_to(ROOT / folder)).as_posix()
        for folder, package in FOLDERS.items()
        for path in files_of(ROOT / folder)
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_installed_packages_have_names_of_their_own(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if ".dist-info" not in name} == set(FOLDERS.values())


def test_packages_come_from_the_wheel(installed: Path, empty: Path) -> None:
    code = f"import json; print(json.dumps([__import__(name).__file__ for name in {sorted(FOLDERS.values())}]))"
    for file in json.loads(run(installed, "python", "-c", code, folder=empty)):
        assert Path(file).is_relative_to(installed.parent)


def test_recorded_traces_are_voted_over(installed: Path, empty: Path) -> None:
    rows = [{"question_id": "q", "text": "", "answer": answer, "reference": "2"} for answer in ("2", "3", "2.0")]
    (empty / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = json.loads(run(installed, "arrol-eval", "vote", "traces.jsonl", "--json", folder=empty))
    assert {report["method"]: report["accuracy"] for report in told["methods"]}["majority"] == 1.0


def test_the_endpoint_is_a_command(installed: Path, empty: Path) -> None:
    pytest.importorskip("fastapi")
    assert "--min-confidence" in run(installed, "arrol-serve", "--help", folder=empty)


@pytest.mark.slow
def test_the_pocket_benchmark_runs(installed: Path, empty: Path) -> None:
    pytest.importorskip("vllm")
    run(installed, "arrol-eval", "run", "pocket", "--limit=3", "--n=4", "--out=here", folder=empty)
    (entry,) = json.loads((empty / "here" / "report.json").read_text())["benchmarks"]
    assert (entry["name"], entry["questions"], entry["n"]) == ("pocket", 3, 4)


@pytest.mark.slow
def test_reinforcement_learning_runs(installed: Path, empty: Path) -> None:
    pytest.importorskip("vllm")
    pytest.importorskip("trl")
    small = {"steps": 1, "prompts": 2, "rollout.group": 4, "rollout.max_tokens": 64, "eval_samples": 1}
    small |= {"task.train": 16, "task.test": 4, "rollout.cold_start": 0}
    changed = [f"--set={name}={value}" for name, value in small.items()]
    run(installed, "arrol-train", "rl", "--config=pocket", "--out=here", *changed, folder=empty)
    assert (empty / "here" / "policy" / "model.safetensors").exists()
    assert (empty / "here" / "head" / "head.safetensors").exists()


@pytest.mark.slow
def test_the_demo_answers_and_shows_the_evaluation_of_its_head(installed: Path, empty: Path) -> None:
    pytest.importorskip("vllm")
    pytest.importorskip("gradio")
    from gradio_client import Client

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [installed / "arrol-demo", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=empty, stdout=subprocess.PIPE, text=True, env=environment() | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        try:
            assert process.stdout is not None
            url = next(found[0] for line in process.stdout if (found := re.search(r"http://[\d.:]+", line)))
            client = Client(url, verbose=False)
            frame = client.predict(question=QUESTION, n=4, api_name="/ask")
            assert frame["runs"][0]["reference"] == ANSWER
            _, _, chart, caption = views(url)
            assert chart.startswith("<svg")
            assert "200 questions" in caption
        finally:
            process.terminate()


def views(url: str) -> Any:
    """What the page shows under "How good is the head?", asked for as the page does."""
    import httpx

    page = httpx.get(f"{url}/config").json()
    shown = next(part["id"] for part in page["components"] if part["props"].get("elem_id") == "accuracy")
    call = next(each["id"] for each in page["dependencies"] if shown in each["outputs"])
    body = {"data": [], "fn_index": call, "session_hash": "wheel"}
    return httpx.post(f"{url}/gradio_api/run/predict", json=body, timeout=60).json()["data"]
