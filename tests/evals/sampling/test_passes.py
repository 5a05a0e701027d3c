"""Options of the passes that follow from what the full pass has stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from arrol_tts.consensus import Consensus
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.stopping import ConfidenceFloor
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from arrol_tts.waves import Waves
from evals.sampling.passes import pass_options


@pytest.mark.parametrize(("own", "window"), [({}, 20), ({"deepconf": {"window": 8}}, 8)])
def test_deepconf_online_can_stop_traces_of_80_tokens_and_clear_questions(
    own: dict[str, dict[str, int]], window: int, tmp_path: Path
) -> None:
    with TraceStore(tmp_path) as store:
        store.extend(Trace("q", i, num_tokens=tokens) for i, tokens in enumerate((60, 100)))
    voter = WeightedVoter(config=QualityHeadConfig("m", 4, voting=own))
    options = pass_options("deepconf-online", voter, 16, 0.5, tmp_path, Waves())
    assert options["rules"] == (ConfidenceFloor(warmup=8, window=window),)
    assert options["consensus"] == Consensus(share=0.95, min_votes=8, method="deepconf")
