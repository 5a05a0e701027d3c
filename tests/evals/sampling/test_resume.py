"""A run that is killed goes on: nothing is lost, nothing is there twice, and the results are the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from arrol_tts.waves import Waves
from evals.benchmarks import pocket
from evals.cli import app
from evals.reporting.summary import benchmark_report
from evals.sampling.folder import RunFolder
from evals.sampling.seed_samples import sample_seed

QUESTIONS, N = 6, 4
FOLDERS = ("traces", "traces_pruned")


def arguments(out: Path, temperature: float, questions: int) -> list[str]:
    options = ["--n", str(N), "--limit", str(questions), "--max-tokens", "96", "--engine", "transformers"]
    sampling = ["--temperature", str(temperature), "--out", str(out)]
    return ["run", "pocket", *options, *sampling]


def finish(out: Path, temperature: float, questions: int) -> None:
    """Run to the end, in this process, where everything is imported already."""
    result = CliRunner().invoke(app, arguments(out, temperature, questions))
    assert result.exit_code == 0, result.output


def start(out: Path, temperature: float, questions: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "from evals.cli import app; app()", *arguments(out, temperature, questions)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def kill_at_random(out: Path, temperature: float, questions: int, rng: random.Random) -> bool:
    """Start the run, and kill it at a random moment after it has begun to write; False when it ended before."""
    process = start(out, temperature, questions)
    stored = sum(count(out).values())
    early = rng.random() < 0.2  # while the model loads; else once it has written something new
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        written = (out / "manifest.json").exists() if early else sum(count(out).values()) > stored
        if written:
            time.sleep(rng.uniform(0, 0.5))
            break
        time.sleep(0.005)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def count(out: Path) -> dict[str, int]:
    """Bytes that each pass has written so far."""
    folders = {name: out / "pocket" / "seed-0" / name for name in FOLDERS}
    return {n: sum(f.stat().st_size for f in p.glob("*") if f.is_file()) for n, p in folders.items() if p.exists()}


def contents(out: Path, name: str) -> list[tuple[Any, ...]]:
    traces = list(TraceStore(out / "pocket" / "seed-0" / name))
    return sorted((t.question_id, t.sample_id, t.text, tuple(t.token_ids or ()), t.finish_reason) for t in traces)


def check_kills(tmp_path: Path, temperature: float, kills: int, questions: int) -> None:
    rng = random.Random(kills)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(whole, temperature, questions)
    killed, left = 0, []
    for _ in range(kills):
        killed += kill_at_random(cut, temperature, questions, rng)
        for name in FOLDERS:
            stored = [(t.question_id, t.sample_id) for t in _readable(cut / "pocket" / "seed-0" / name)]
            assert len(set(stored)) == len(stored)
            left.append(len(stored))
    # Some come in the middle of a pass; the last have nothing left to cut.
    assert killed >= kills / 4
    assert any(0 < traces < questions * N for traces in left)
    finish(cut, temperature, questions)
    for name in FOLDERS:
        found, expected = contents(cut, name), contents(whole, name)
        assert [key[:2] for key in found] == [key[:2] for key in expected]
        assert len(found) == questions * N
        if temperature == 0:
            assert found == expected
    verdicts = [json.loads((out / "verdicts.json").read_text())["pocket"]["right"] for out in (cut, whole)]
    if temperature == 0:
        assert verdicts[0] == verdicts[1]
    (runs,), (others,) = RunFolder(cut).samples(), RunFolder(whole).samples()
    assert len(runs[0].full) == len(others[0].full) == questions


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*ends in a torn record")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_run_killed_twenty_times_gives_the_same_traces(tmp_path: Path, temperature: float) -> None:
    check_kills(tmp_path, temperature, kills=20, questions=60)


def _readable(folder: Path) -> list[Trace]:
    return list(TraceStore(folder)) if folder.exists() else []


class RecordingVoter:
    """Stands where a WeightedVoter stands, makes traces up, and stops where it is told to."""

    config = None

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.asked: list[tuple[str, int]] = []

    def sample(self, texts: dict[str, str], n: int, *, on_trace: Any, samples: Any = None, **_: Any) -> None:
        wanted = [(q, i) for q in texts for i in (range(n) if samples is None else samples[q])]
        for q, i in wanted:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append((q, i))
            on_trace(Trace(q, i, answer="1", num_tokens=3))


def run(voter: RecordingVoter, out: Path, stopping: tuple[str, ...]) -> Any:
    return sample_seed(
        pocket.load(QUESTIONS),
        voter,
        n=N,
        seed=0,
        keep=0.5,
        out=out,
        stopping=stopping,  # type: ignore[arg-type]
    )


def test_only_what_is_missing_is_sampled(tmp_path: Path) -> None:
    first = RecordingVoter(stop_after=10)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path, ())
    second = RecordingVoter()
    result = run(second, tmp_path, ())
    assert len(second.asked) == QUESTIONS * N - 10
    assert not set(first.asked) & set(second.asked)
    assert [len(group) for group in result.full.values()] == [N] * QUESTIONS


def test_questions_that_are_compared_are_stored_and_sampled_whole(tmp_path: Path) -> None:
    first = RecordingVoter(stop_after=QUESTIONS * N + 10)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path, ("consensus",))
    ids = [problem.id for problem in pocket.load(QUESTIONS).problems]
    lacking = TraceStore(tmp_path / "traces_consensus").missing(ids, N)
    assert lacking == {question_id: tuple(range(N)) for question_id in ids[10 // N :]}
    second = RecordingVoter()
    result = run(second, tmp_path, ("consensus",))
    assert len(second.asked) == (QUESTIONS - 10 // N) * N
    assert [len(group) for group in result.passes["consensus"].values()] == [N] * QUESTIONS


class WavesVoter(WeightedVoter):
    """Runs waves over made-up traces, one at a time; the answers to every other question differ."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(method="majority")
        self.stop_after = stop_after
        self.asked: list[tuple[str, int]] = []

    def sample(self, questions: Any, n: int = 32, *, on_trace: Any = None, **options: Any) -> Any:
        waves = Waves(options["start"], options["step"], options["certainty"]) if "start" in options else None
        for q in questions:
            made: list[Trace] = []
            while more := n - len(made) if waves is None else waves.more(made, n, self.vote):
                for _ in range(more):
                    if self.stop_after is not None and len(self.asked) >= self.stop_after:
                        raise KeyboardInterrupt
                    i = len(made)
                    self.asked.append((q, i))
                    made.append(Trace(q, i, answer="1" if q[-1] in "024" else str(i), num_tokens=3))
                    on_trace(made[-1])
        return {}


def test_waves_are_stored_by_question_and_what_they_did_without_is_marked(tmp_path: Path) -> None:
    def run_waves(voter: WeightedVoter) -> Any:
        waves = Waves(start=2, step=2, certainty=0.96)  # four votes without a rival are .969
        problems = pocket.load(4)
        return sample_seed(problems, voter, n=8, seed=0, keep=0.5, out=tmp_path, stopping=["waves"], waves=waves)

    whole = 4 * 8
    with pytest.raises(KeyboardInterrupt):
        run_waves(WavesVoter(stop_after=whole + 4 + 5))  # in the middle of the second question
    stored = list(TraceStore(tmp_path / "traces_waves"))
    assert [(t.question_id, t.num_tokens, t.finish_reason, t.detail) for t in stored] == [
        *[("pocket-0", 3, "stop", "")] * 4,
        *[("pocket-0", 0, "cancelled", "not started: the vote was clear")] * 4,
    ]
    second = WavesVoter()
    samples = run_waves(second)
    assert Counter(q for q, _ in second.asked) == {"pocket-1": 8, "pocket-2": 4, "pocket-3": 8}
    assert [len(group) for group in samples.passes["waves"].values()] == [8] * 4
    report = benchmark_report([samples], WeightedVoter())
    (row,) = [row for row in report["stopping"] if row["name"] == "majority_waves"]
    assert row["tokens_per_question"] == (4 + 8 + 4 + 8) * 3 / 4
    assert report["waves_traces"] == 6


def test_a_report_leaves_out_questions_that_are_not_complete(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(RecordingVoter(stop_after=10), tmp_path, ())
    from evals.sampling.seed_samples import read_seed

    found = read_seed(pocket.load(QUESTIONS), n=N, seed=0, keep=0.5, out=tmp_path, passes=("full",))
    assert list(found.full) == ["pocket-0", "pocket-1"]
