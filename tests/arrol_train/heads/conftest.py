"""A collection, and the head that is made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.arrol_train.heads.made import FAST, invoke, write_collection


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("made") / "collection")


@pytest.fixture(scope="session")
def head(collection: Path) -> Path:
    out = collection.parent / "head"
    invoke("head", collection, "--out", out, *FAST)
    return out
