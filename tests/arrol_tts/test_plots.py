"""Drawing."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from arrol_tts.plots import draw_reliability


def test_a_bar_is_as_high_as_its_bin_is_right_and_says_how_many_it_holds() -> None:
    axes = Figure().subplots()
    draw_reliability(axes, [4, 0], [0.25, None])
    assert [bar.get_height() for bar in axes.patches] == [0.25, 0.0]
    assert [bar.get_x() + bar.get_width() / 2 for bar in axes.patches] == pytest.approx([0.25, 0.75])
    assert [label.get_text() for label in axes.texts] == ["4", ""]
