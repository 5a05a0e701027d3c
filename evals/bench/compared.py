"""What is compared: votes on the same questions with their paired differences, and means over few runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arrol_tts.metrics import Floats, bootstrap_interval, mcnemar


def compared(right: Mapping[str, Floats], against: Sequence[str] = ("majority", "deepconf")) -> dict[str, Any]:
    """``accuracy_NAME`` of every vote, and ``NAME_above_OTHER`` for the others that come before it.

    Args:
        right: for each vote its verdict on every question, 0 or 1, float ``[questions]``; baselines first.
        against: votes that the later ones are compared with.

    Returns:
        Accuracies and differences, each with a 95% interval that resamples questions; differences also with the
        p-value of McNemar's exact test.
    """
    figures: dict[str, Any] = {}
    before: list[str] = []
    for name, verdicts in right.items():
        figures[f"accuracy_{name}"] = float(verdicts.mean())
        figures[f"accuracy_{name}_interval"] = list(bootstrap_interval(verdicts))
        for other in before:
            difference = verdicts - right[other]
            figures[f"{name}_above_{other}"] = float(difference.mean())
            figures[f"{name}_above_{other}_interval"] = list(bootstrap_interval(difference))
            figures[f"{name}_above_{other}_mcnemar_p"] = mcnemar(verdicts > 0, right[other] > 0).p_value
        if name in against:
            before.append(name)
    return figures


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean of at least two values."""
    from scipy.stats import t

    margin = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return float(np.mean(values)) - margin, float(np.mean(values)) + margin
