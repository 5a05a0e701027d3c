"""Drawing onto matplotlib's axes that a caller made; nothing here imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def draw_reliability(axes: Any, count: Sequence[int], accuracy: Sequence[float | None]) -> None:
    """Draw how often something comes true against the probability it was given (see ``metrics.reliability``).

    On the diagonal a probability can be taken at its word; a bar below it is overconfident. The number on a bar is
    how many predictions it holds.

    Args:
        axes: matplotlib's ``Axes``.
        count: predictions in each of the equal-width bins.
        accuracy: share of them that came true, None or nan where a bin is empty.
    """
    bins = len(count)
    middles = (np.arange(bins) + 0.5) / bins
    bars = axes.bar(middles, np.nan_to_num(np.array(accuracy, float)), width=0.9 / bins, color="tab:blue")
    axes.bar_label(bars, [str(number or "") for number in count], fontsize=7)
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.1))
