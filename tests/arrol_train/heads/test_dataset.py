"""Collections as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arrol_train.heads.collect import TRACES_FOLDER, CollectError
from arrol_train.heads.dataset import open_collected
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from tests.arrol_train.heads.made import KEPT, MANIFEST, WIDTH, write_collection


def test_scoring_by_one_head_leaves_no_trace_in_what_another_scores(collection: Path, head: Path) -> None:
    first = QualityHead.from_pretrained(head)
    second = QualityHead(QualityHeadConfig("m", WIDTH, inner_size=4))
    asked = frozenset(["row-3", "row-1"])
    with open_collected(collection) as collected:
        alone = collected.scored(first, asked)
        other = collected.scored(second, asked)
        again = collected.scored(first, asked)
        assert [[t.scores for t in group] for group in alone] == [[t.scores for t in group] for group in again]
        assert alone[0][0].scores.keys() == other[0][0].scores.keys() == set(KEPT[1:])
        assert alone[0][0].scores != other[0][0].scores
        assert [group[0].question_id for group in alone] == ["row-1", "row-3"]
        assert not any(trace.scores for trace in collected.traces)


def test_vectors_of_another_width_are_refused(tmp_path: Path) -> None:
    collection = write_collection(tmp_path / "c", questions=2, manifest={"hidden_size": WIDTH + 1})
    with pytest.raises(CollectError, match="width 8, and the manifest says 9"), open_collected(collection):
        pass


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    MANIFEST.claim(tmp_path)
    with TraceStore(tmp_path / TRACES_FOLDER) as store:
        store.append(Trace("a", 0, num_tokens=5, features={4: np.full(WIDTH, np.nan, np.float32)}, correct=True))
    with pytest.raises(CollectError, match="NaN, infinite or huge"), open_collected(tmp_path):
        pass


def test_the_file_of_vectors_goes_away(collection: Path) -> None:
    before = sorted(collection.iterdir())
    with open_collected(collection) as collected:
        assert collected.states.features.shape == (60 * 8 * len(KEPT), WIDTH)
    assert sorted(collection.iterdir()) == before
