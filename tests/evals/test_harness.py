"""Votes inside the real lm-evaluation-harness, with the pocket model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts.head_config import read_head_config, resolve_head
from arrol_tts.pocket import questions
from arrol_tts.voter import WeightedVoter

if TYPE_CHECKING:
    from arrol_tts.engine.transformers_engine import TransformersEngine

lm_eval = pytest.importorskip("lm_eval")

QUESTIONS = [{"question": q.text, "answer": q.answer} for q in itertools.islice(questions("test"), 6)]


@pytest.fixture
def voter(transformers_engine: TransformersEngine) -> WeightedVoter:
    return WeightedVoter(transformers_engine, config=read_head_config(resolve_head("pocket")))


def task(data: Path) -> dict[str, Any]:
    """A task as a user would write one: generated answers, the last number of each, exact match."""
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    last_number = [
        {"function": "regex", "group_select": -1, "regex_pattern": "(-?[0-9]+)"},
        {"function": "take_first"},
    ]
    return {
        "task": "pocket_arithmetic",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(data)},
        "test_split": "train",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "do_sample": False},
        "filter_list": [{"name": "last-number", "filter": last_number}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


@pytest.mark.slow
def test_a_task_scores_what_the_vote_says(voter: WeightedVoter, tmp_path: Path) -> None:
    from evals.harness import VotingLM

    model = VotingLM(voter=voter, n=4, method="quality", seed=3)
    found = lm_eval.simple_evaluate(model=model, tasks=[task(tmp_path / "task.jsonl")], log_samples=True)
    texts = {str(i): row["question"] for i, row in enumerate(QUESTIONS)}
    results = voter.solve_many(texts, 4, method="quality", seed=3)
    right = [result.answer == row["answer"] for result, row in zip(results, QUESTIONS, strict=True)]
    scored = found["results"]["pocket_arithmetic"]["exact_match,last-number"]
    assert scored == pytest.approx(sum(right) / len(right))
    samples = sorted(found["samples"]["pocket_arithmetic"], key=lambda sample: sample["doc_id"])
    assert [sample["exact_match"] == 1.0 for sample in samples] == right


def test_the_harness_knows_the_model_by_name() -> None:
    from lm_eval.api.registry import get_model

    from evals.harness import VotingLM

    assert get_model("arrol") is VotingLM


def test_the_heaviest_trace_of_the_winner_is_returned_and_stops_reach_the_engine() -> None:
    from lm_eval.api.instance import Instance

    from arrol_tts.trace import Trace
    from evals.harness import VotingLM

    class Made(WeightedVoter):
        def solve_many(self, texts: Any, n: int = 1, *, stop: tuple[str, ...] = (), **_: Any) -> list[Any]:
            written = [("so 2", "2", 0.4), (f"thus 2 {stop}", "2", 0.5), ("so 3", "3", 0.7), ("", None, 0.9)]
            groups = [
                [
                    Trace(q, i, f"{texts[q]}: {text}", answer=a, scores={1: s})
                    for i, (text, a, s) in enumerate(written)
                ]
                for q in texts
            ]
            return [self.vote(group, "quality") for group in groups]

    stops = [{"until": ["\n\nQ:"]}, {"until": "."}, {}, {"until": ["\n\nQ:"]}]
    requests = [Instance("generate_until", {}, (f"{i}+1", options), i) for i, options in enumerate(stops)]
    assert VotingLM(voter=Made(), n=4).generate_until(requests) == [
        "0+1: thus 2 ('\\n\\nQ:',)",
        "1+1: thus 2 ('.',)",
        "2+1: thus 2 ()",
        "3+1: thus 2 ('\\n\\nQ:',)",
    ]


def test_model_arguments_reach_the_sampling() -> None:
    from lm_eval.api.instance import Instance

    from arrol_tts.trace import Trace
    from evals.harness import VotingLM

    class Made(WeightedVoter):
        def solve_many(self, texts: Any, n: int = 1, **options: Any) -> list[Any]:
            return [self.vote([Trace(q, 0, f"{n} {options}", answer="1")], "majority") for q in texts]

    model = VotingLM(voter=Made(), n=4, top_k=20, temperature=0.6, max_tokens=9, seed=3)
    (text,) = model.generate_until([Instance("generate_until", {}, ("1+1", {}), 0)])
    assert text.startswith("4 {")
    for part in ("'top_k': 20", "'temperature': 0.6", "'max_tokens': 9", "'seed': 3"):
        assert part in text


@pytest.mark.parametrize("call", ["loglikelihood", "loglikelihood_rolling", "apply_chat_template"])
def test_what_votes_cannot_do_says_what_to_choose(voter: WeightedVoter, call: str) -> None:
    from evals.harness import VotingLM

    with pytest.raises(NotImplementedError, match="generate_until|chat=False"):
        getattr(VotingLM(voter=voter), call)([])


def test_neither_head_nor_model_is_refused() -> None:
    from evals.harness import VotingLM

    with pytest.raises(ValueError, match="name a head or a model"):
        VotingLM()
