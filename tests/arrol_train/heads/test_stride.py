"""How many hidden vectors are kept, where nobody says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from arrol_train.heads.collect import default_stride, predicted_bytes
from tests.arrol_train.heads.made import MANIFEST

WIDE = replace(MANIFEST, hidden_size=4096, positions=[16])


def limited(max_tokens: int) -> dict[str, object]:
    return MANIFEST.sampling | {"max_tokens": max_tokens}


@pytest.mark.parametrize(("max_tokens", "stride"), [(40, 1), (512, 1), (513, 2), (4096, 8), (32768, 64)])
def test_a_trace_keeps_at_most_512_vectors(tmp_path: Path, max_tokens: int, stride: int) -> None:
    assert default_stride(replace(MANIFEST, sampling=limited(max_tokens)), 1, tmp_path / "new" / "out") == stride


def test_half_of_the_free_disk_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = replace(WIDE, sampling=limited(256))
    # 1000 traces of 257 and 65 vectors of 8 kB, and the finish's, 12 bytes more each; 4 kB for the other columns.
    assert predicted_bytes(replace(manifest, stride=1), 1000) == 1000 * (258 * 8204 + 4096) == 2_120_728_000
    assert predicted_bytes(replace(manifest, stride=4), 1000) == 1000 * (66 * 8204 + 4096) == 545_560_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_200_000_000))
    assert default_stride(manifest, 1000, tmp_path) == 4
    assert default_stride(manifest, 100, tmp_path) == 1


def test_a_collection_that_goes_on_keeps_its_stride(tmp_path: Path) -> None:
    replace(MANIFEST, stride=32).claim(tmp_path)
    assert default_stride(MANIFEST, 1, tmp_path) == 32
