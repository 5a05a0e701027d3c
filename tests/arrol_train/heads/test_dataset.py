"""Collections as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from arrol_train.heads.collect import TRACES_FOLDER, CollectError
from arrol_train.heads.dataset import open_collected
from arrol_tts.errors import InputError
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from tests.arrol_train.heads.made import KEPT, LENGTH, MANIFEST, WIDTH, write_collection


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


def test_scores_are_the_heads_own_of_the_trace_so_far(collection: Path) -> None:
    torch.manual_seed(0)
    head = QualityHead(QualityHeadConfig("m", WIDTH, 4, "gated", stride=8, calibration=[2.0, -1.0]))
    with open_collected(collection) as collected:
        (group,) = collected.scored(head, frozenset(["row-3"]), [3, 8, 20, 99])
        trace = next(i for i, t in enumerate(collected.traces) if (t.question_id, t.sample_id) == ("row-3", 2))
        first, last = collected.states.starts[trace : trace + 2]
        kept = torch.from_numpy(collected.states.features[first:last].astype(np.float32))
    with torch.inference_mode():
        at_0, at_8, at_16, _, at_32 = head(kept[[0, 2, 4, 6, 8]]).tolist()  # KEPT has every fourth token
    # At 3 and 20 no vector of this stride was kept: those before count. At 99 the trace has ended.
    assert group[2].scores == pytest.approx({3: at_0, 8: at_8, 20: at_16, LENGTH - 1: at_32}, abs=1e-5)


def test_a_head_without_pooling_has_scores_where_vectors_were_kept(collection: Path) -> None:
    head = QualityHead(QualityHeadConfig("m", WIDTH, 4))
    with open_collected(collection) as collected:
        (group,) = collected.scored(head, frozenset(["row-3"]))
        vector = torch.from_numpy(collected.states.features[collected.states.starts[1] - 1].astype(np.float32))
        scores = collected.scored(head, frozenset([collected.traces[0].question_id]))[0][0].scores
    assert list(group[0].scores) == [position for position in KEPT if position]
    with torch.inference_mode():
        assert scores[LENGTH - 1] == pytest.approx(float(head(vector)), abs=1e-6)


def test_a_collection_of_some_positions_alone_is_for_heads_that_pool_nothing(tmp_path: Path) -> None:
    MANIFEST.claim(tmp_path)
    with TraceStore(tmp_path / TRACES_FOLDER) as store:
        store.append(Trace("a", 0, num_tokens=20, features={p: np.ones(WIDTH) for p in (4, 16, 19)}, correct=True))
    with open_collected(tmp_path) as collected:
        asked = frozenset(["a"])
        with pytest.raises(InputError, match="train with --pooling last"):
            collected.scored(QualityHead(QualityHeadConfig("m", WIDTH, pooling="gated")), asked)
        (group,) = collected.scored(QualityHead(QualityHeadConfig("m", WIDTH)), asked)
        assert list(group[0].scores) == [4, 16, 19]


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
