"""The sections of the results page, and the tables they are made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.bench import RESULTS
from evals.reporting.sections import SECTIONS, write_sections
from evals.reporting.sections.parts import NONE, difference, table
from tests.evals.markdown import tables


def test_a_difference_says_whether_it_is_one() -> None:
    assert difference(0.1, [0.05, 0.15]) == "+0.100 (+0.050 to +0.150)"
    assert difference(0.1, [-0.05, 0.25]) == "+0.100 (-0.050 to +0.250, not to be told from none)"


def test_what_is_not_measured_is_not_claimed(tmp_path: Path) -> None:
    parts = list(write_sections(tmp_path))
    for name, section in SECTIONS.items():
        command = f"Not measured yet: `python -m evals.{'' if name == 'reproduce' else 'bench.'}{name}`"
        assert any(command in part for part in parts) is not section.once_measured
        assert (f"## {section.title}" in parts) is not section.once_measured
    assert not any("What it means" in part for part in parts)


def test_an_unknown_benchmark_is_shown_with_all_its_figures(tmp_path: Path) -> None:
    figures = {
        "speed": 2.0,
        "speed_interval": [1.5, 2.5],
        "speed_per_seed": [2.4, 1.6],  # is no interval
        "by_size": {"small": {"auroc": {"mean": 0.75, "folds": [0.7, 0.8]}}, "large": {"auroc": {"mean": 0.5}}},
        "rows": [
            {"rule": "none", "setting": "", "right": 0.5, "right_per_seed": [1, 0]},
            {"rule": "keep", "setting": "half", "right": 1.0},
        ],
    }
    machine = {"cores": 2, "cpu": "abacus"}
    result = {"command": "python -m evals.bench.new", "commit": "0" * 40, "machine": machine, "seeds": [0]}
    (tmp_path / "new.json").write_text(json.dumps({**result, "figures": figures}))
    parts = list(write_sections(tmp_path))
    text = "\n\n".join(parts[parts.index("## new") :])
    single, by_size, rows = tables(text)
    assert single[1:] == [["speed", "2"], ["speed interval", "1.5 to 2.5"]]
    assert by_size == [["name", "auroc"], ["small", "0.75"], ["large", "0.5"]]
    assert rows == [["rule", "setting", "right"], ["none", NONE, "0.5"], ["keep", "half", "1"]]
    assert "Made by `python -m evals.bench.new` at commit 000000000000 on 2 cores (abacus), seeds 0" in text


@pytest.mark.parametrize(
    "rows",
    [[], [["x"]], [["x", " "]], [["x", "1", "2"]]],
    ids=["no rows", "a column", "a blank cell", "another width"],
)
def test_a_table_that_says_nothing_is_an_error(rows: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="a table of"):
        table(["name", "value"] if rows != [["x"]] else ["name"], rows)


def test_what_the_engine_section_concludes_follows_from_the_figures() -> None:
    figures = json.loads((RESULTS / "engine.json").read_text())["figures"]
    columns = {"setting": "", "accuracy_quality": 0.5, "accuracy_majority": 0.5, "seconds": 1.0}
    none, first, second, budget = (
        {**columns, "rule": rule, "tokens_saved": saved, "accuracy_against_none": [-0.1, 0.0, 0.1]}
        for rule, saved in (("none", 0.0), ("keep_share", 0.58), ("keep_share", 0.38), ("budget", 0.6))
    )
    figures["rules"] = {"questions": 48, "traces": 32, "curve": [none, first, second, budget]}
    step = figures["steps"]["135m"]
    step |= {"ratio": 1.02, "ratio_interval": [0.99, 1.05]}

    def meaning() -> str:
        return list(SECTIONS["engine"].show(figures))[-1]

    assert "and +2.0% (-1.0% to +5.0%, not to be told from none) on a 135M model's shape" in meaning()
    assert "lose accuracy clearly: none." in meaning()
    assert "loses nothing that 48 questions can show, and saves up to 58% of the tokens." in meaning()
    step["ratio_interval"] = [1.01, 1.03]
    for row in (first, budget):
        row["accuracy_against_none"] = [-0.3, -0.2, -0.1]
    assert "and +2.0% (+1.0% to +3.0%) on a 135M model's shape" in meaning()
    assert "lose accuracy clearly: keep the best share, a budget of tokens." in meaning()
    assert "can show at 1 of 2 settings, and saves up to 38% of the tokens there" in meaning()
    second["accuracy_against_none"] = [-0.3, -0.2, -0.1]
    assert "Keeping the best share loses accuracy at every setting." in meaning()
