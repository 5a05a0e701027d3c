"""The check of a machine says what is right there, and sees rows that are not a trace's own."""

from __future__ import annotations

import re
from typing import Any

import pytest

from arrol_tts.engine.check import main
from arrol_tts.pocket import POCKET_MODEL

pytest.importorskip("vllm")

OPTIONS = '{"dtype": "float32", "max_model_len": 64, "max_num_seqs": 16, "kv_cache_memory_bytes": 33554432}'
SMALL = [str(POCKET_MODEL), "pocket", "--n", "4", "--at", "6", "--tokens", "12", "--options", OPTIONS]


def run(capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(SMALL)
    return int(end.value.code or 0), capfd.readouterr().out


def test_a_machine_on_which_all_is_as_in_transformers_is_right(capfd: pytest.CaptureFixture[str]) -> None:
    status, printed = run(capfd)
    assert status == 0
    assert re.search(r"vLLM 0\.\d+\.\d+, runner V1, synchronous scheduling, float32, CPU", printed)
    assert "prunings     8 of 8 groups, 0 traces against the ranking: right" in printed
    assert re.search(r"step time    \d\.\d{3} times", printed)
    assert printed.endswith("verdict      right\n")


def test_a_machine_on_which_rows_are_read_that_are_not_the_traces_own_is_wrong(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from arrol_tts.engine.vllm_plugin.worker import QualityHeadWorker

    read = QualityHeadWorker._arrol_read

    def others(self: QualityHeadWorker, wanted: Any, rows: Any, hidden: Any, logits: Any) -> Any:
        return read(self, wanted, rows, hidden.roll(1, 0), None if logits is None else logits.roll(1, 0))

    monkeypatch.setattr(QualityHeadWorker, "_arrol_read", others)
    status, printed = run(capfd)
    assert status == 1
    for signal in ("scores", "confidences", "states"):
        assert re.search(rf"{signal} .*: WRONG", printed)
    assert printed.endswith("verdict      WRONG\n")
