"""The pocket benchmark: its figures on made-up samples, and those that are committed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from arrol_tts.head_config import ACCURACY_TOKENS_FILE, QualityHeadConfig
from arrol_tts.pocket import POCKET_HEAD
from arrol_tts.replay import replay
from arrol_tts.stopping import KeepShare
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from evals.bench import RESULTS
from evals.bench.pocket import accuracy_tokens, as_voted, choose, summarise, tokens_as_good
from evals.benchmarks import Benchmark, Problem, pocket
from evals.reporting.plots import pocket_figure
from evals.reporting.sections.pocket import main_table
from evals.sampling.seed_samples import SeedSamples

POSITION, N = 16, 8
VOTER = WeightedVoter(
    config=QualityHeadConfig(
        base_model="m", hidden_size=4, positions=[POSITION, 48], voting={"quality": {"odds_power": 1.0}}
    )
)


def made_up(questions: int, seed: int) -> SeedSamples:
    """Most traces are wrong together, and the head knows which are right; every sixteenth token has a score."""
    rng = np.random.default_rng(seed)
    problems = tuple(Problem(f"q{i}", "?", "1") for i in range(questions))
    full = {}
    for problem in problems:
        group = []
        for i in range(N):
            right, tokens = bool(rng.random() < 0.4), int(rng.integers(100, 140))
            score = 0.95 if right else 0.05
            scores = {k: score if k > 16 or i else 1 - score for k in (*range(16, tokens - 1, 16), tokens - 1)}
            group.append(
                Trace(
                    problem.id,
                    i,
                    answer="1" if right else "2",
                    num_tokens=tokens,
                    scores=scores,
                    confidence=rng.gamma(4, 4, tokens).astype(np.float32),
                    correct=right,
                    meta={"self_certainty": 1.0},
                )
            )
        full[problem.id] = group
    passes = {"full": full, "pruned": {q: replay(group, KeepShare(POSITION, 0.5)) for q, group in full.items()}}
    benchmark = Benchmark("made", problems, lambda p, a: a == p.answer)
    return SeedSamples(benchmark, N, seed, 0.5, passes, {"full": 2.0, "pruned": 1.0})


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    chosen = choose(made_up(6, seed=9), VOTER)
    return dict(json.loads(json.dumps(summarise([made_up(6, seed) for seed in (0, 1)], chosen, VOTER))))


def test_every_way_of_stopping_early_stands_beside_as_many_tokens(figures: dict[str, Any]) -> None:
    ways = ("quality_pruned", "random_pruned", "waves", "adaptive_consistency", "esc", "deepconf_online")
    for name in ways:
        assert figures[f"whole_traces_for_{name}"] == pytest.approx(N * figures[f"tokens_{name}_share"])
        above = figures[f"accuracy_{name}"] - figures[f"accuracy_{name}_equal_tokens"]
        assert figures[f"{name}_above_equal_tokens"] == pytest.approx(above)
        low, high = figures[f"{name}_above_equal_tokens_interval"]
        assert low <= above <= high
    assert figures["tokens_quality_pruned_share"] == pytest.approx(1 - figures["tokens_saved_share"], abs=1e-3)


def test_the_line_to_beat_ends_at_the_vote_over_all_traces(figures: dict[str, Any]) -> None:
    assert [row["traces"] for row in figures["whole_traces"]] == [1, 2, 4, 6, 8]
    last = figures["whole_traces"][-1]
    assert last["tokens_per_question"] == pytest.approx(figures["tokens_per_question"]["majority"])
    assert last["accuracy_quality"] == pytest.approx(figures["accuracy_quality"])


def test_as_good_as_whole_traces_lies_on_the_line_between_them() -> None:
    curve = zip((0.5, 0.7, 0.9, 0.8), (100, 200, 400, 800), strict=True)
    whole = [{"accuracy_quality": accuracy, "tokens_per_question": tokens} for accuracy, tokens in curve]
    assert tokens_as_good(whole, 0.8) == pytest.approx(300)
    assert tokens_as_good(whole, 0.9) == pytest.approx(400)
    assert tokens_as_good(whole, 0.4) == 100
    assert tokens_as_good(whole, 0.91) is None


def test_the_table_and_the_picture_show_the_control(figures: dict[str, Any]) -> None:
    pruned = main_table(figures).splitlines()[5]
    assert pruned.startswith("| **quality head, half pruned at token 16** |")
    assert pruned.endswith(f"| {figures['accuracy_quality_pruned_equal_tokens']:.3f} |")
    lines = {line.get_label(): line for line in pocket_figure(figures).axes[0].lines}
    whole = lines["quality, 1 to 32 whole traces"]
    assert list(whole.get_ydata()) == [row["accuracy_quality"] for row in figures["whole_traces"]]
    assert list(lines["ESC"].get_xdata()) == [figures["tokens_per_question"]["esc"]]


def test_other_positions_of_the_head_are_replayed_too(figures: dict[str, Any]) -> None:
    late = [row for row in figures["keep_ratios_elsewhere"] if row["position"] == 48]
    assert [row["keep"] for row in late] == [row["keep"] for row in figures["keep_ratios_replayed"]]
    for early, late_one in zip(figures["keep_ratios_replayed"], late, strict=True):
        assert early["position"] == POSITION
        assert 0 < late_one["tokens_saved_share"] < early["tokens_saved_share"]


def test_settings_are_chosen_on_other_questions_and_written_down(figures: dict[str, Any]) -> None:
    assert set(figures["settings"]) >= {"waves", "adaptive_consistency", "esc", "deepconf_online"}
    assert set(figures["settings"]["waves"]) == {"start", "step", "certainty"}
    by_certainty = {row["certainty"]: row for row in figures["waves_by_certainty"]}
    assert figures["settings"]["waves"]["certainty"] in by_certainty


def test_the_head_is_measured_on_its_way(figures: dict[str, Any]) -> None:
    # At token 16 the first trace's score is upside down; everywhere else right ones score above wrong ones.
    assert figures["auroc_within_32"] == figures["auroc_within_finish"] == 1.0
    assert 0.5 < figures["auroc_within_16"] < 1.0
    assert "self-certainty" in figures["accuracy_every_method"]


def test_votes_read_the_scores_at_the_detection_position_and_the_finish_only() -> None:
    samples = as_voted(made_up(1, seed=0), VOTER)
    for name in ("full", "pruned"):
        for trace in samples.passes[name]["q0"]:
            assert set(trace.scores) == {POSITION, trace.num_tokens - 1}


def test_settings_are_chosen_on_training_questions() -> None:
    chosen, asked = pocket.load(20, "train"), pocket.load(20)
    assert not {p.question for p in chosen.problems} & {p.question for p in asked.problems}


def test_the_curve_beside_the_pocket_head_is_that_of_the_committed_figures() -> None:
    figures = json.loads((RESULTS / "pocket.json").read_text())["figures"]
    curve = json.loads((POCKET_HEAD / ACCURACY_TOKENS_FILE).read_text())
    assert curve == accuracy_tokens(figures)
    assert curve["curve"][4]["accuracy"] == figures["accuracy_quality"]
