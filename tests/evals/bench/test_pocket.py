"""The pocket benchmark's committed figures."""

from __future__ import annotations

import json

from arrol_tts.head_config import ACCURACY_TOKENS_FILE
from arrol_tts.pocket import POCKET_HEAD
from evals.bench import RESULTS
from evals.bench.pocket import accuracy_tokens


def test_the_curve_beside_the_pocket_head_is_that_of_the_committed_figures() -> None:
    figures = json.loads((RESULTS / "pocket.json").read_text())["figures"]
    curve = json.loads((POCKET_HEAD / ACCURACY_TOKENS_FILE).read_text())
    assert curve == accuracy_tokens(figures)
    assert curve["curve"][4]["accuracy"] == figures["accuracy_quality"]
