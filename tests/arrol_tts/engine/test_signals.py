"""Signals of a step's logits, against their definitions written out."""

from __future__ import annotations

import math

import pytest
import torch

from arrol_tts.engine.signals import self_certainty, token_confidence


def test_self_certainty_is_the_mean_of_the_log_ratio_to_the_uniform_distribution() -> None:
    # p = 1/2, 1/4, 1/4: -(log(3/2) + 2 log(3/4)) / 3.
    logits = torch.tensor([[math.log(2.0), 0.0, 0.0]])
    expected = -(math.log(3 / 2) + 2 * math.log(3 / 4)) / 3
    assert self_certainty(logits).tolist() == pytest.approx([expected])


def test_self_certainty_is_zero_where_all_tokens_are_equally_likely() -> None:
    assert self_certainty(torch.full((2, 7), 3.5)).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_signals_of_half_precision_logits_are_float32() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    half = logits.bfloat16()
    for signal in (self_certainty, lambda rows: token_confidence(rows, 5)):
        assert signal(half).dtype == torch.float32
        torch.testing.assert_close(signal(half), signal(half.float()))
