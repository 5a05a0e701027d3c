"""DeepConf's measures against literal values and against their definition, spelled out window by window."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from arrol_tts import confidence

TOKENS = np.array([4, 2, 6, 8], np.float32)


def defined(values: list[float], window: int, tail: int, share: float) -> tuple[float, float, float, float]:
    """Mean, tail, bottom-window and lowest-window confidence as published, without a shortcut."""
    if not values:
        return 0.0, 0.0, 0.0, 0.0
    mean = math.fsum(values) / len(values)
    last = values[-tail:]
    if len(values) < window:
        return mean, math.fsum(last) / len(last), mean, mean
    groups = sorted(math.fsum(values[i : i + window]) / window for i in range(len(values) - window + 1))
    bottom = groups[: max(1, int(len(groups) * share))]
    return mean, math.fsum(last) / len(last), math.fsum(bottom) / len(bottom), groups[0]


def test_mean_of_all_tokens() -> None:
    assert confidence.mean(TOKENS) == 5.0


def test_tail_is_the_mean_of_the_last_tokens() -> None:
    assert confidence.tail(TOKENS, 3) == pytest.approx(16 / 3)


def test_tail_longer_than_the_trace_is_its_mean() -> None:
    assert confidence.tail(TOKENS, 100) == 5.0


def test_group_confidence_is_the_mean_of_every_sliding_window() -> None:
    np.testing.assert_allclose(confidence.group_confidence(TOKENS, 2), [3, 4, 7])


def test_lowest_window() -> None:
    assert confidence.lowest_window(TOKENS, 2) == 3.0


def test_bottom_window_averages_the_lowest_share() -> None:
    assert confidence.bottom_window(TOKENS, 2, share=0.67) == 3.5


def test_bottom_window_keeps_at_least_one_window() -> None:
    assert confidence.bottom_window(TOKENS, 2, share=0.1) == 3.0


def test_bottom_count_is_truncated_not_rounded() -> None:
    # 19 windows of one token: 10% of them is 1.9, which counts as 1.
    assert confidence.bottom_window(np.arange(1, 20, dtype=np.float32), 1, share=0.1) == 1.0


def test_share_of_one_averages_every_window() -> None:
    assert confidence.bottom_window(TOKENS, 2, share=1.0) == pytest.approx(14 / 3)


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_fewer_tokens_than_the_window_make_one_window(num_tokens: int) -> None:
    short = TOKENS[:num_tokens]
    expected = float(short.mean())
    assert confidence.bottom_window(short, 4) == confidence.lowest_window(short, 4) == expected


def test_exactly_one_window() -> None:
    assert confidence.bottom_window(TOKENS, 4) == confidence.lowest_window(TOKENS, 4) == 5.0


def test_no_tokens_measure_zero() -> None:
    found = confidence.measures([np.empty(0, np.float32)])
    assert [found.mean[0], found.tail[0], found.bottom_window[0], found.lowest_window[0]] == [0, 0, 0, 0]


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 31, 32, 33, 34, 41, 42, 51, 52, 100, 357])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equal_to_the_published_definition(num_tokens: int, share: float) -> None:
    values = np.random.default_rng(num_tokens).gamma(4, 4, num_tokens).astype(np.float32)
    expected = defined(values.tolist(), window=32, tail=20, share=share)
    found = confidence.measures([values], window=32, tail=20, share=share)
    got = (found.mean[0], found.tail[0], found.bottom_window[0], found.lowest_window[0])
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_single_measures_equal_the_batch() -> None:
    rng = np.random.default_rng(0)
    traces = [rng.gamma(4, 4, n).astype(np.float32) for n in (5, 64, 65, 300)]
    found = confidence.measures(traces, window=64, tail=32)
    assert found.mean.tolist() == [confidence.mean(c) for c in traces]
    assert found.tail.tolist() == [confidence.tail(c, 32) for c in traces]
    assert found.bottom_window.tolist() == [confidence.bottom_window(c, 64) for c in traces]
    assert found.lowest_window.tolist() == [confidence.lowest_window(c, 64) for c in traces]


def test_a_matrix_is_a_batch_of_equal_lengths() -> None:
    assert confidence.measures(np.stack([TOKENS, TOKENS[::-1]]), tail=1).tail.tolist() == [8.0, 4.0]


def test_no_traces_give_empty_measures() -> None:
    assert confidence.measures([]).mean.shape == (0,)


def test_long_trace_keeps_float64_precision() -> None:
    values = np.full(200_000, 23.7, np.float32)
    values[-2048:] = 0.1
    assert confidence.lowest_window(values) == pytest.approx(float(np.float32(0.1)), rel=1e-7)


def test_measures_leave_their_input_unchanged() -> None:
    values = np.array([9, 1, 5, 3, 7], np.float64)
    confidence.measures([values], window=1, share=0.4)
    assert values.tolist() == [9, 1, 5, 3, 7]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_bad_value_is_located(bad: float) -> None:
    values = np.array([3, bad, 4], np.float32)
    with pytest.raises(ValueError, match=rf"confidence of trace 1 is {bad} at token 1; .* finite"):
        confidence.measures([TOKENS, values])


def test_negative_and_positive_infinity_are_located() -> None:
    with pytest.raises(ValueError, match="confidence is inf at token 0"):
        confidence.mean(np.array([np.inf, -np.inf], np.float32))


@pytest.mark.parametrize("values", [np.zeros((2, 2), np.float32), np.float32(1)])
def test_wrong_dimension(values: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"it must be \[num_tokens\]"):
        confidence.mean(values)


@pytest.mark.parametrize("window", [0, -3])
def test_window_below_one(window: int) -> None:
    with pytest.raises(ValueError, match=f"window is {window}; it must be at least 1 token"):
        confidence.lowest_window(TOKENS, window)


def test_tail_below_one() -> None:
    with pytest.raises(ValueError, match="n is 0; it must be at least 1 token"):
        confidence.tail(TOKENS, 0)


@pytest.mark.parametrize("share", [0.0, 1.5, -0.1, math.nan])
def test_share_outside_its_range(share: float) -> None:
    with pytest.raises(ValueError, match=rf"share is {share}; it must be in \(0, 1\]"):
        confidence.bottom_window(TOKENS, 2, share)
