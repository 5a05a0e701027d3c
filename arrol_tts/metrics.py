"""Metrics of samples and of votes: accuracies, curves, ranking, calibration, intervals, paired tests.

Small pure functions over arrays. *Samples* come as flat arrays beside an array that names each
sample's question; *votes* come as one value per question. Intervals resample questions, never
samples: samples of one question are not independent, and a benchmark's size is its questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arrol_tts.errors import InputError, MissingPackageError

Floats = NDArray[np.float64]
Question = TypeVar("Question", bound=Hashable)

_CELLS_PER_CHUNK = 4_000_000
"""Random numbers drawn at a time by the resampling functions: 32 MB, whatever the data's size."""


# --- accuracy of samples and of votes over them ---------------------------------------------------


def accuracy_per_question(correct: Sequence[bool], questions: Sequence[Question]) -> dict[Question, float]:
    """Share of correct samples of each question, questions in order of first appearance.

    Args:
        correct: one truth value per sample.
        questions: the question of each sample.

    Raises:
        InputError: when the two differ in length or are empty.
    """
    if len(correct) != len(questions) or not len(correct):
        raise InputError(
            f"correct has {len(correct)} values and questions {len(questions)}; "
            "give one of each per sample, and at least one sample"
        )
    outcomes: dict[Question, list[bool]] = {}
    for question, outcome in zip(questions, correct, strict=True):
        outcomes.setdefault(question, []).append(bool(outcome))
    return {question: sum(values) / len(values) for question, values in outcomes.items()}


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: int) -> Floats:
    """Unbiased probability that at least one of k samples is right: ``1 - C(n-c, k) / C(n, k)``.

    Args:
        num_samples: n, samples drawn for each question; broadcasts with ``num_correct``.
        num_correct: c, how many of them are right.
        k: size of the draw, without replacement.

    Returns:
        float64, the broadcast shape: one probability per question.

    Raises:
        InputError: unless 1 <= k <= n and 0 <= c <= n.

    Source: Chen et al. 2021, section 2.1, https://arxiv.org/abs/2107.03374.
    """
    samples, right = np.broadcast_arrays(np.asarray(num_samples, float), np.asarray(num_correct, float))
    if k < 1 or (samples < k).any():
        raise InputError(f"k is {k}; it must be at least 1 and at most the {samples.min():g} samples drawn")
    if (right < 0).any() or (right > samples).any():
        raise InputError("num_correct must lie between 0 and num_samples")
    drawn = np.arange(k)
    wrong = samples - right
    # C(n-c, k) / C(n, k) as a product of k ratios: no large numbers, and 0 once the wrong ones run out.
    all_wrong = np.clip((wrong[..., None] - drawn) / (samples[..., None] - drawn), 0.0, None).prod(axis=-1)
    result: Floats = 1.0 - all_wrong
    return result


def random_subsets(num_samples: int, k: int, *, subsets: int = 200, seed: int = 0) -> NDArray[np.intp]:
    """Indices of random k-subsets of a question's samples, int ``[subsets, k]``.

    For a given seed the k-subsets are prefixes of the (k+1)-subsets, so that neighbouring points of
    a curve differ by the added samples and not by luck of the draw. When k is all the samples, one
    row is returned: every subset is the same.

    Raises:
        InputError: unless 1 <= k <= num_samples and subsets >= 1.
    """
    if not 1 <= k <= num_samples:
        raise InputError(f"k is {k}; it must be between 1 and the {num_samples} samples there are")
    if subsets < 1:
        raise InputError(f"subsets is {subsets}; it must be at least 1")
    if k == num_samples:
        return np.arange(num_samples)[None, :]
    order = np.random.default_rng(seed).random((subsets, num_samples)).argsort(axis=1)
    return order[:, :k]


def vote_curve(
    groups: ArrayLike,
    correct: ArrayLike,
    sizes: Sequence[int],
    *,
    weights: ArrayLike | None = None,
    subsets: int = 200,
    seed: int = 0,
) -> Floats:
    """maj@k, or weighted@k, of one question for each k: expected accuracy of a vote among k samples.

    A tie counts as the share of the tied answers that are right, the expectation of a fair draw. A
    subset without any votes counts as wrong. For methods whose weights depend on the subset (ranks,
    top shares), use :func:`curve_of`.

    Args:
        groups: int ``[n]``, the answer class of each sample; negative: no answer, hence no vote.
        correct: bool ``[n]``, whether the sample's answer is right; equal inside a class.
        sizes: the values of k, each from 1 to n.
        weights: float ``[n]``, non-negative weight of each vote; None: every vote counts one.
        subsets: random subsets per k. seed: of the draw.

    Returns:
        float64 ``[len(sizes)]``.

    Raises:
        InputError: on differing lengths, weights that are negative or not finite, k out of range.
    """
    classes = np.asarray(groups)
    right = np.asarray(correct, bool)
    weight = np.ones(len(classes)) if weights is None else np.asarray(weights, float)
    if not classes.shape == right.shape == weight.shape or classes.ndim != 1:
        raise InputError(
            f"groups, correct and weights have shapes {classes.shape}, {right.shape}, {weight.shape}; "
            "give one of each per sample"
        )
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise InputError("weights must be finite and not negative")
    voting = classes >= 0
    _, compact = np.unique(classes[voting], return_inverse=True)
    column = np.full(len(classes), -1)
    column[voting] = compact
    num_classes = int(column.max()) + 1 if voting.any() else 0
    class_right = np.zeros(num_classes, bool)
    class_right[column[voting & right]] = True

    curve = np.zeros(len(sizes))
    for i, k in enumerate(sizes):
        chosen = random_subsets(len(classes), k, subsets=subsets, seed=seed)
        rows = np.broadcast_to(np.arange(len(chosen))[:, None], chosen.shape)
        cast = column[chosen] >= 0
        cells = rows[cast] * num_classes + column[chosen][cast]
        totals = np.bincount(cells, weight[chosen][cast], len(chosen) * num_classes).astype(np.float64)
        curve[i] = _expected_accuracy(totals.reshape(len(chosen), num_classes), class_right).mean()
    return curve


def _expected_accuracy(totals: Floats, class_right: NDArray[np.bool_]) -> Floats:
    """Share of right classes among the leaders of each row of ``[rows, classes]`` vote totals."""
    if not totals.shape[1]:
        return np.zeros(len(totals))
    best = totals.max(axis=1, keepdims=True)
    # Sums of the same weights in another order differ in the last bits; they are still ties.
    leads = (totals >= best * (1 - 1e-12)) & (best > 0)
    result: Floats = (leads & class_right).sum(axis=1) / np.maximum(leads.sum(axis=1), 1)
    return result


def curve_of(
    is_right: Callable[[NDArray[np.intp]], float],
    num_samples: int,
    sizes: Sequence[int],
    *,
    subsets: int = 200,
    seed: int = 0,
) -> Floats:
    """Accuracy of any vote at each k: the mean of ``is_right(indices)`` over random k-subsets.

    Args:
        is_right: takes int ``[k]`` sample indices of one question; 1.0 where the vote over them is right.
        num_samples: how many samples the question has.
        sizes: the values of k. subsets, seed: as in :func:`random_subsets`.

    Returns:
        float64 ``[len(sizes)]``.
    """
    return np.array(
        [
            np.mean([is_right(row) for row in random_subsets(num_samples, k, subsets=subsets, seed=seed)])
            for k in sizes
        ]
    )


def curve_sizes(largest: int) -> list[int]:
    """The values of k that curves are drawn at: 1, 2, 4 .. and ``largest``."""
    return sorted({2**i for i in range(largest.bit_length())} | {largest})


# --- ranking --------------------------------------------------------------------------------------


def auroc(correct: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a right sample scores above a wrong one, ties counting one half.

    Args:
        correct: bool ``[n]``. scores: finite float ``[n]``, higher meaning more likely right.

    Returns:
        The area under the ROC curve; nan when all samples are right or all wrong.

    Raises:
        InputError: on differing lengths or scores that are not finite.
    """
    return float(auroc_per_question(correct, scores, np.zeros(np.shape(correct), int))[0])


def auroc_per_question(correct: ArrayLike, scores: ArrayLike, questions: ArrayLike) -> Floats:
    """AUROC inside each question, float64 ``[distinct questions]`` in sorted order of their names.

    nan for questions whose samples are all right or all wrong. Errors as in :func:`auroc`.
    """
    right, score, question = np.asarray(correct, bool), np.asarray(scores, float), np.asarray(questions)
    if not right.shape == score.shape == question.shape or right.ndim != 1 or not right.size:
        raise InputError(
            f"correct, scores and questions have shapes {right.shape}, {score.shape}, {question.shape}; "
            "give one of each per sample, and at least one sample"
        )
    if not np.isfinite(score).all():
        raise InputError("scores must be finite: leave out the samples that have none")
    _, group = np.unique(question, return_inverse=True)
    num_groups = int(group.max()) + 1

    order = np.lexsort((score, group))
    right, score, group = right[order], score[order], group[order]
    # Mann-Whitney: ranks run from 1 inside each question; tied scores share their mean rank.
    starts = np.searchsorted(group, np.arange(num_groups))
    new_value = np.r_[True, (np.diff(group) != 0) | (np.diff(score) != 0)]
    first = np.flatnonzero(new_value)
    last = np.r_[first[1:], len(group)] - 1
    rank = ((first + last) / 2)[np.cumsum(new_value) - 1] - starts[group] + 1

    num_right = np.bincount(group, right, num_groups)
    num_wrong = np.bincount(group, ~right, num_groups)
    rank_sum = np.bincount(group, rank * right, num_groups)
    with np.errstate(invalid="ignore"):
        result: Floats = (rank_sum - num_right * (num_right + 1) / 2) / (num_right * num_wrong)
    return result


def within_question_auroc(correct: ArrayLike, scores: ArrayLike, questions: ArrayLike) -> float:
    """Mean AUROC over the questions that have both right and wrong samples; nan when none has.

    What a vote can use: AUROC over all samples also rewards knowing which questions are hard.
    Arguments and errors as in :func:`auroc_per_question`.
    """
    values = auroc_per_question(correct, scores, questions)
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


# --- calibration ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins of a reliability plot; float64 ``[bins]`` each unless said otherwise.

    Attributes:
        edges: ``[bins + 1]`` equal-width bin edges from 0 to 1.
        count: int64, predictions in each bin.
        confidence: mean predicted probability of each bin; nan where it is empty.
        accuracy: share of outcomes that are true in each bin; nan where it is empty.
        ece: the expected calibration error, the count-weighted mean of ``|confidence - accuracy|``.
    """

    edges: Floats
    count: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats
    ece: float


def brier(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared difference between predicted probabilities and 0/1 outcomes; lower is better.

    Raises:
        InputError: when the two differ in length, are empty, or a probability leaves [0, 1].
    """
    probability, outcome = _predictions(probabilities, outcomes)
    return float(np.mean((probability - outcome) ** 2))


def reliability(probabilities: ArrayLike, outcomes: ArrayLike, *, bins: int = 10) -> Reliability:
    """Observed accuracy against predicted probability in equal-width bins, for plot and ECE.

    Raises:
        InputError: as :func:`brier`, or when ``bins`` is below 1.

    Source: Guo et al. 2017, section 2, https://arxiv.org/abs/1706.04599.
    """
    if bins < 1:
        raise InputError(f"bins is {bins}; it must be at least 1")
    probability, outcome = _predictions(probabilities, outcomes)
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins).astype(np.int64)
    with np.errstate(invalid="ignore"):
        confidence: Floats = np.bincount(index, probability, bins) / count
        accuracy: Floats = np.bincount(index, outcome, bins) / count
    ece = float(np.nansum(count * np.abs(confidence - accuracy)) / len(probability))
    return Reliability(edges, count, confidence, accuracy, ece)


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, *, bins: int = 10) -> float:
    """The ``ece`` of :func:`reliability`."""
    return reliability(probabilities, outcomes, bins=bins).ece


def _predictions(probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[Floats, Floats]:
    probability, outcome = np.asarray(probabilities, float), np.asarray(outcomes, float)
    if probability.shape != outcome.shape or probability.ndim != 1 or not probability.size:
        raise InputError(
            f"probabilities and outcomes have shapes {probability.shape} and {outcome.shape}; "
            "give one of each per prediction, and at least one prediction"
        )
    if not ((probability >= 0) & (probability <= 1)).all():
        raise InputError("probabilities must lie in [0, 1]")
    if not np.isin(outcome, (0.0, 1.0)).all():
        raise InputError("outcomes must be true or false")
    return probability, outcome


# --- intervals ------------------------------------------------------------------------------------


def bootstrap_interval(
    values_per_question: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over questions, resampling whole questions.

    Args:
        values_per_question: finite float ``[questions]``, one value each (an accuracy, a 0/1 verdict).
        level: coverage. resamples: bootstrap draws. seed: of the draws.

    Returns:
        ``(low, high)``.

    Raises:
        InputError: without questions, on values that are not finite, or a level outside (0, 1).
    """
    values = np.asarray(values_per_question, float)
    return bootstrap_ratio_interval(values, np.ones(values.shape), level=level, resamples=resamples, seed=seed)


def bootstrap_ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``sum(numerators) / sum(denominators)`` over questions.

    For a mean over samples, clustered by question, pass each question's sum and its sample count;
    for a ratio of costs, each question's two costs.

    Args:
        numerators, denominators: finite float ``[questions]``; denominators are positive.
        level, resamples, seed: as in :func:`bootstrap_interval`.

    Returns:
        ``(low, high)``.

    Raises:
        InputError: on shapes that differ, no questions, values that are not finite, denominators
            that are not positive, or a level outside (0, 1).
    """
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    if above.shape != below.shape or above.ndim != 1 or not above.size:
        raise InputError(f"values have shapes {above.shape} and {below.shape}; give one per question")
    if not (np.isfinite(above).all() and np.isfinite(below).all()):
        raise InputError("values must be finite: leave out the questions that have none")
    if (below <= 0).any():
        raise InputError("denominators must be positive")
    _check_level(level)
    draws = [
        above[index].sum(axis=1) / below[index].sum(axis=1)
        for index in _chunks(resamples, len(above), seed, high=len(above))
    ]
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion of independent trials.

    Raises:
        InputError: unless 0 <= successes <= trials, trials >= 1 and 0 < level < 1.
        MissingPackageError: without SciPy.

    Source: Wilson 1927; https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(f"{successes} successes of {trials} trials is not a proportion")
    _check_level(level)
    found = _binomtest(successes, trials).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def _binomtest(successes: int, trials: int) -> Any:
    """SciPy's exact binomial test, loaded when first asked for: votes do without it."""
    try:
        from scipy.stats import binomtest
    except ImportError:
        raise MissingPackageError(
            "intervals and tests of reports need scipy, which is not installed: pip install 'arrol[evals]'"
        ) from None
    return binomtest(successes, trials)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it must lie between 0 and 1, such as 0.95")


def _chunks(rows: int, columns: int, seed: int, *, high: int) -> Iterator[NDArray[np.int64]]:
    """Random integers below ``high`` of shape ``[rows, columns]``, a bounded number of rows at a time."""
    if rows < 1:
        raise InputError(f"resamples is {rows}; it must be at least 1")
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS_PER_CHUNK // columns)
    for start in range(0, rows, step):
        yield rng.integers(high, size=(min(step, rows - start), columns))


# --- paired tests between two methods -------------------------------------------------------------


class McNemar(NamedTuple):
    """Exact McNemar test of two methods on the same questions.

    Attributes:
        only_first, only_second: questions that one method alone gets right.
        p_value: two-sided; 1.0 when the methods never differ.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact two-sided McNemar test: are the questions on which two methods differ split evenly?

    Args:
        first, second: bool ``[questions]``, whether each method is right, in the same order.

    Raises:
        InputError: when the two differ in length or are empty.
        MissingPackageError: without SciPy.

    Source: McNemar 1947; the exact form is the binomial sign test on the discordant pairs.
    """
    one, two = np.asarray(first, bool), np.asarray(second, bool)
    _check_paired(one.shape, two.shape)
    only_first, only_second = int((one & ~two).sum()), int((~one & two).sum())
    discordant = only_first + only_second
    p_value = float(_binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p_value)


def paired_permutation_test(
    first: ArrayLike, second: ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value that two methods have the same mean, by flipping signs of paired differences.

    Exact (every sign pattern) when there are no more than ``resamples`` patterns; otherwise random
    patterns, with the observed one counted in, so the p-value is never 0.

    Args:
        first, second: finite float ``[questions]``, one value of each method per question.
        resamples: random sign patterns. seed: of the draw.

    Raises:
        InputError: when the two differ in length or are empty, or values are not finite.
    """
    one, two = np.asarray(first, float), np.asarray(second, float)
    _check_paired(one.shape, two.shape)
    difference = one - two
    if not np.isfinite(difference).all():
        raise InputError("values must be finite: leave out the questions that have none")
    difference = difference[difference != 0]  # flipping the sign of zero changes nothing
    if not difference.size:
        return 1.0
    observed = abs(difference.sum()) * (1 - 1e-12)  # equal sums in another order stay equal
    if len(difference) < 63 and 2 ** len(difference) <= resamples:
        patterns = np.arange(2 ** len(difference))[:, None] >> np.arange(len(difference)) & 1
        return float((abs((2 * patterns - 1) @ difference) >= observed).mean())
    extreme = sum(
        int((abs((2 * flips - 1) @ difference) >= observed).sum())
        for flips in _chunks(resamples, len(difference), seed, high=2)
    )
    return (extreme + 1) / (resamples + 1)


def _check_paired(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    if first != second or len(first) != 1 or not first[0]:
        raise InputError(f"the methods have values of shapes {first} and {second}; give one each per question")
