"""The figures of the head benchmark, from evaluations written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arrol_train.heads.choose import split_questions
from arrol_train.heads.dataset import open_collected
from arrol_tts.errors import InputError
from arrol_tts.head_config import QualityHeadConfig
from evals.bench.head import SHORT, _variants, expressions, main, pruning, votes, write_word_problems
from evals.reporting.sections.head import ABLATION
from tests.arrol_train.heads.made import write_collection


def evaluation(**right: dict[str, bool]) -> dict[str, Any]:
    cut = {"position": 4, "keep": 0.5, "tokens_saved": 0.4, "accuracy": 0.5, "above_full": 0.1, "random": 0.2}
    return {
        "votes": {method: {"right": verdicts} for method, verdicts in right.items()},
        "test": {"pruning": [cut | {"accuracy": float(len(right["majority"]))}]},
    }


def test_every_question_counts_once_over_the_folds() -> None:
    no, yes = {"a": False, "b": False}, {"a": True, "b": True}
    one = evaluation(majority=no, deepconf=no, quality=yes, combined={"b": True, "a": False})
    two = evaluation(**{method: {"c": True} for method in ("majority", "deepconf", "quality", "combined")})
    figures = votes([one, two])
    assert figures["accuracy_majority"] == pytest.approx(1 / 3)
    assert figures["accuracy_head"] == 1.0
    assert figures["head_above_majority"] == pytest.approx(2 / 3)
    assert figures["combined_above_deepconf"] == pytest.approx(1 / 3)
    assert figures["head_above_majority_mcnemar_p"] == pytest.approx(0.5)
    assert figures["accuracy_head_interval"] == [1.0, 1.0]
    assert pruning([one, two])[0]["accuracy"] == pytest.approx(1.5)


def test_worked_examples_are_not_asked(tmp_path: Path) -> None:
    data, shots = write_word_problems(tmp_path, 500)
    assert len(data.read_text().splitlines()) == 500
    assert not set(data.read_text().splitlines()) & set(shots.read_text().splitlines())


def test_parts_measured_with_other_settings_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"model": Path("m"), "policy": Path("p"), "pocket": Path("c"), "part": None}
    monkeypatch.setattr("evals.bench.head.write_result", lambda *_: None)
    monkeypatch.setattr("evals.bench.head.PARTS", ())
    main(tmp_path, count=3, n=4, **settings)
    main(tmp_path, count=3, n=4, **settings)
    with pytest.raises(InputError, match="was made from n 4, and this call has 5"):
        main(tmp_path, count=3, n=5, **settings)


def test_every_variant_of_the_ablation_is_another(tmp_path: Path) -> None:
    with open_collected(write_collection(tmp_path / "collection", questions=20)) as collected:
        split = split_questions(collected.question_ids, seed=0)
        config = QualityHeadConfig("m", collected.manifest.hidden_size, 128, "mean", positions=[16])
        variants = _variants(collected, split, config)
    kinds = {repr((config, training, train.tolist())) for config, training, train in variants.values()}
    assert len(kinds) == len(variants)
    assert {*variants} - {*ABLATION} == set()


def test_expressions_are_dealt_by_length() -> None:
    short, long = next(expressions(short=True)), next(expressions(short=False))
    assert 1 + sum(short["question"].count(sign) for sign in "+-*") <= SHORT
    assert 1 + sum(long["question"].count(sign) for sign in "+-*") > SHORT
