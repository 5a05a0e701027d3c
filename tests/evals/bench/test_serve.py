"""What the benchmark of the endpoint makes of its measurements, and what is written of it."""

from __future__ import annotations

from typing import Any

import pytest

from arrol_tts.pocket import PocketQuestion
from evals.bench.crowd import figure
from evals.bench.serve import Answer, summarise
from evals.reporting.sections.serve import costs_part, show
from tests.evals.markdown import tables

ASKED = [PocketQuestion("2+3*4", "14"), PocketQuestion("2*3+4", "10")]


def made() -> dict[str, Any]:
    quick = {"by_hand": 0.8, "endpoint_majority": 1.2, "solve": 1.0, "endpoint": 1.1, "waves": 0.5, "one": 0.2}
    alone = {
        name: [Answer("14", 100, seconds), Answer("20" if name == "one" else "10.0", 200, 3 * seconds)]
        for name, seconds in quick.items()
    }
    seconds = {name: [10.0 * quick[name], 12.0 * quick[name]] for name in quick if name not in ("waves", "one")}
    latencies = {name: [1.0, 2.0, 3.0, 10.0] for name in seconds}
    crowd = {
        "clients": 500, "seconds": 180.0, "asked_requests": 9000, "vanished_requests": 8000,
        "answered_requests": 1000, "failed_requests": 0, "memory_mib": 900, "memory_growth_mib": 0.4,
        "left_running": 0.0, "left_waiting": 0.0, "busy_share_afterwards": 0.001,
    }  # fmt: skip
    return {"clients": 32, "crowd": crowd, **summarise(ASKED, alone, seconds, latencies)}


def test_ratios_are_of_questions_and_of_rounds() -> None:
    figures = made()
    assert figures["gateway_overhead_ratio"] == pytest.approx(1.1)
    assert figures["gateway_overhead_ratio_at_once"] == pytest.approx(1.1)
    assert figures["by_hand_ratio"] == pytest.approx(1.5)
    assert figures["ratio_of_each_question"] == [1.1, 1.1]
    assert figures["gateway_requests_per_second"] == pytest.approx(4 / 24.2, abs=1e-3)
    assert (figures["gateway_p50_seconds"], figures["gateway_p99_seconds"]) == (2.5, 9.79)


def test_ways_are_right_as_often_as_their_answers_are_equal() -> None:
    alone = made()["alone"]
    assert (alone["endpoint"]["accuracy"], alone["one"]["accuracy"]) == (1.0, 0.5)
    assert alone["endpoint"] == {
        "p50_seconds": 2.2, "p99_seconds": 3.278, "tokens_per_question": 150.0, "accuracy": 1.0,
    }  # fmt: skip


def test_the_section_shows_every_way_and_the_crowd() -> None:
    text = "\n\n".join(show(made()))
    alone, at_once, crowd = tables(text)
    assert alone[1][1:] == ["0.400", "0.596", "150", "0.500"]
    assert len(at_once) == 5
    assert ["that failed", "0"] in crowd
    assert "takes 110.0% the time of the same vote in Python" in text


def test_the_costs_are_those_of_the_pocket_benchmark_beside_one_sample() -> None:
    (costs,) = tables(costs_part(made()))
    one, majority, pruned, waves = costs[1:]
    assert one[3] == "-"
    tokens = [int(row[2].replace(",", "")) for row in (one, majority, pruned, waves)]
    assert tokens[0] < tokens[3] < tokens[2] < tokens[1]
    assert float(majority[3].removesuffix(" times")) == pytest.approx(tokens[1] / tokens[0], abs=0.2)
    assert pruned[5] == f"{tokens[2] / 1000:.2f} USD"


def test_a_figure_without_labels_is_read_off_a_page() -> None:
    page = "# HELP arrol_a So many.\narrol_a 3.0\narrol_ab 4.0\n"
    assert figure(page, "arrol_a") == 3.0
