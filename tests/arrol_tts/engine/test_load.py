"""The one factory of engines, and what may be passed to it as a head."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts.engine.handover import head_folders, named_heads
from arrol_tts.engine.load import load_engine
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.errors import HeadError, InputError, MissingPackageError
from arrol_tts.head_config import head_sha256, read_head_config
from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL
from arrol_tts.stopping import TraceSpec

if TYPE_CHECKING:
    from arrol_tts.head import QualityHead

QUESTION = Question("q", "2 + 3")
SPEC = TraceSpec(score_at=(3,))
GREEDY = Sampling(n=1, temperature=0, max_tokens=8)


def lacking(*packages: str) -> Any:
    find = importlib.util.find_spec
    return lambda name: None if name in packages else find(name)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(InputError, match="engine is 'tensorrt'; it must be 'auto', 'vllm' or 'transformers'"):
        load_engine(POCKET_MODEL, engine="tensorrt")  # type: ignore[arg-type]


def test_neither_a_model_nor_a_head_is_refused() -> None:
    with pytest.raises(InputError, match=r"there is no language model: pass model=.*head=.*server="):
        load_engine()


def test_a_head_that_is_nowhere_is_refused_before_the_model_loads() -> None:
    with pytest.raises(HeadError, match="there is no quality head at 'nowhere'"):
        load_engine("owner/no-such-model", head="nowhere", engine="transformers")


@pytest.mark.parametrize(
    ("options", "package", "message"),
    [
        ({"engine": "vllm"}, "vllm", "needs vllm, which is not installed: pip install 'arrol"),
        ({"engine": "transformers"}, "transformers", "needs transformers, which is not installed"),
        (
            {"server": "http://localhost:1"},
            "httpx",
            "need httpx, which is not installed",
        ),
    ],
)
def test_a_missing_package_is_named(
    options: dict[str, Any], package: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lacking(package))
    with pytest.raises(MissingPackageError, match=message):
        load_engine(POCKET_MODEL, **options)


def test_auto_is_transformers_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lacking("vllm"))
    engine = load_engine(head="pocket")
    assert type(engine).__name__ == "TransformersEngine"
    assert (engine.model, engine.hidden_size, list(engine.heads)) == (str(POCKET_MODEL), 128, [""])


def heads(pocket_head: QualityHead) -> dict[str, Any]:
    return {
        "name": "pocket",
        "path": POCKET_HEAD,
        "text": str(POCKET_HEAD),
        "head": pocket_head,
        "several": {"": "pocket", "other": pocket_head},
    }


@pytest.mark.parametrize("form", ["name", "path", "text", "head", "several"])
def test_a_head_may_be_named_or_passed_in_every_form(form: str, pocket_head: QualityHead) -> None:
    head = heads(pocket_head)[form]
    engine = load_engine(head=head, engine="transformers")
    (trace,) = engine.sample([QUESTION], GREEDY, SPEC)
    (expected,) = load_engine(head="pocket", engine="transformers").sample([QUESTION], GREEDY, SPEC)
    assert trace.scores == expected.scores
    if isinstance(head, Mapping):
        (other,) = engine.sample([QUESTION], GREEDY, replace(SPEC, head="other"))
        assert other.scores == expected.scores


@pytest.mark.parametrize("form", ["name", "path", "text", "head", "several"])
def test_engines_elsewhere_get_a_folder_of_every_head(form: str, pocket_head: QualityHead) -> None:
    head = heads(pocket_head)[form]
    with head_folders(head, hidden_size=128, model="m") as folders:
        assert list(folders) == list(named_heads(head))
        assert {head_sha256(Path(folder)) for folder in folders.values()} == {head_sha256(POCKET_HEAD)}
        assert all(read_head_config(Path(folder)).hidden_size == 128 for folder in folders.values())


def test_a_head_for_another_model_is_refused_whatever_its_form(pocket_head: QualityHead) -> None:
    for head in heads(pocket_head).values():
        with pytest.raises(HeadError, match="width 128"), head_folders(head, hidden_size=64, model="m"):
            pass


def test_the_heads_own_options_are_defaults(pocket_head: QualityHead, tmp_path: Path) -> None:
    from arrol_tts.head import QualityHead as Head

    head = Head(replace(pocket_head.config, engine={"top_k": 3}))
    head.load_state_dict(pocket_head.state_dict())
    head.save_pretrained(tmp_path)
    confidences = [
        next(iter(load_engine(**options).sample([QUESTION], GREEDY, TraceSpec(confidence=True)))).confidence
        for options in (
            {"head": tmp_path, "engine": "transformers"},
            {"head": "pocket", "engine": "transformers", "top_k": 3},
            {"head": tmp_path, "engine": "transformers", "top_k": 9},
        )
    ]
    own, same, other = (confidence.tolist() for confidence in confidences if confidence is not None)
    assert own == same != other
