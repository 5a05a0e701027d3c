"""The group effect is found in labels whose groups share an error."""

from __future__ import annotations

import numpy as np
import pytest

from arrol_train.rl.group_effect import learn_tau
from arrol_tts.calibration import sigmoid


@pytest.mark.parametrize("tau", [0.0, 1.0, 2.5])
def test_the_group_effect_is_learned(tau: float) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 12))
    labels = rng.random(z.shape) < sigmoid(z + tau * rng.normal(size=(400, 1)))
    learned = learn_tau(z.ravel(), labels.ravel(), np.repeat(np.arange(400), 12))
    assert learned == pytest.approx(tau, abs=0.25)


def test_the_group_effect_of_nothing_is_none() -> None:
    assert learn_tau([], [], []) == 0.0
