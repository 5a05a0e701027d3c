"""Losses."""

from __future__ import annotations

import math

import pytest
import torch

from arrol_train.losses import ranking_loss


def test_ranking_loss_equals_a_hand_computation() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, 5.0])
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0])
    groups = torch.tensor([0, 0, 0, 1])
    expected = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(-2.0))) / 2
    assert ranking_loss(logits, labels, groups).item() == pytest.approx(expected)


def test_ranking_loss_without_pairs_is_zero() -> None:
    ones = torch.ones(3)
    assert ranking_loss(ones, ones, torch.zeros(3)).item() == 0
    assert ranking_loss(ones, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 1, 2])).item() == 0
