"""Scorers of STEP as heads: files of the layout of those that it released, made here."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from arrol_train.cli import app
from arrol_train.heads.dataset import States
from arrol_train.heads.step_scorer import import_step_scorer, read_scorer, save_imported
from arrol_tts import HeadError, QualityHead, QualityHeadConfig, Trace, WeightedVoter
from arrol_tts.engine.request import Question, Sampling
from arrol_tts.errors import InputError
from arrol_tts.head_config import read_head_config
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import TraceSpec

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

STEP_END = 3
"""The pocket model's new line, which the tokenizer of these tests spells as an empty line."""


def scorer(width: int = 128) -> torch.nn.Module:
    """Laid out as STEP's: its state dict has the names net.0.weight, net.0.bias, net.2.weight and net.2.bias."""
    torch.manual_seed(0)
    made = torch.nn.Module()
    made.net = torch.nn.Sequential(torch.nn.Linear(width, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model") / "Phi-4-reasoning-plus"
    shutil.copytree(POCKET_MODEL, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["\n\n"] = vocabulary.pop("\n")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as its training writes it, figures of numpy among them."""
    made = scorer()
    optimizer = torch.optim.Adam(made.parameters())
    made.net(torch.ones(1, 128)).sum().backward()
    optimizer.step()
    path: Path = tmp_path_factory.mktemp("scorer") / "step_scorer.pt"
    checkpoint = {
        "epoch": 3,
        "model_state_dict": made.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "best_score": np.float64(0.7),
        "metrics": {"auc": np.float64(0.75), "acc": 0.7},
        "config_name": "default",
        "loss_curve": [0.6, 0.5],
    }
    torch.save(checkpoint, path)
    return path


def test_a_state_dict_and_a_checkpoint_are_read_alike(file: Path, tmp_path: Path) -> None:
    found = read_scorer(file)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "net.0.weight": (512, 128),
        "net.0.bias": (512,),
        "net.2.weight": (1, 512),
        "net.2.bias": (1,),
    }
    torch.save({name: tensor.half() for name, tensor in found.items()}, tmp_path / "bare.pt")
    bare = read_scorer(tmp_path / "bare.pt")
    assert {tensor.dtype for tensor in bare.values()} == {torch.float32}
    torch.testing.assert_close(bare, found, atol=1e-3, rtol=1e-3)


class Harmful:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


def test_nothing_in_the_file_is_executed(file: Path, tmp_path: Path) -> None:
    content = read_scorer(file) | {"more": Harmful(tmp_path / "made")}
    torch.save(content, tmp_path / "zip.pt")
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(content["more"]))
    for name in ("zip.pt", "old.pt", "plain.pt"):
        with pytest.raises(HeadError, match="cannot be read as a torch file of numbers alone"):
            read_scorer(tmp_path / name)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"net.0.weight": torch.ones(4, 8)},
            "no scorer of STEP: it must hold the tensors net.0.weight, net.0.bias",
        ),
        ([1, 2], "no scorer of STEP"),
        ({"net.0.weight": 1, "net.0.bias": 2, "net.2.weight": 3, "net.2.bias": 4}, "no scorer of STEP"),
        (
            {
                "net.0.weight": torch.ones(4, 8),
                "net.0.bias": torch.ones(4),
                "net.2.weight": torch.ones(2, 4),
                "net.2.bias": torch.ones(2),
            },
            "have shapes",
        ),
        (
            {
                "net.0.weight": torch.full((4, 8), torch.nan),
                "net.0.bias": torch.ones(4),
                "net.2.weight": torch.ones(1, 4),
                "net.2.bias": torch.ones(1),
            },
            "numbers that are not finite",
        ),
    ],
)
def test_a_file_of_another_layout_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(HeadError, match=message):
        read_scorer(tmp_path / "other.pt")


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_broken_or_missing_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(HeadError, match="cannot be read"):
        read_scorer(tmp_path / "broken.pt")


def test_a_scorer_for_another_width_and_a_model_without_step_ends_are_refused(
    model: Path, file: Path, tmp_path: Path
) -> None:
    torch.save(scorer(64).state_dict(), tmp_path / "narrow.pt")
    with pytest.raises(HeadError, match="width 64 .* has width 128"):
        import_step_scorer(tmp_path / "narrow.pt", str(model))
    with pytest.raises(HeadError, match="no token of this model has an empty line in it"):
        import_step_scorer(file, str(POCKET_MODEL))


@torch.inference_mode()
def mean_of_steps(prompt_ids: list[int], trace: Trace, file: Path, until: int) -> float:
    """By STEP's definition, of one plain pass over the tokens up to a position."""
    from transformers import AutoModelForCausalLM

    made = scorer()
    made.load_state_dict(read_scorer(file))
    assert trace.token_ids is not None
    written = trace.token_ids[:until]
    lm = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    hidden = lm(torch.tensor([prompt_ids + written]), output_hidden_states=True).hidden_states[-1][0]
    ends = [len(prompt_ids) + i for i, token in enumerate(written) if token == STEP_END]
    return float(made.net(hidden[ends]).sigmoid().mean())


def check_scores(engine: Any, name: str, file: Path) -> None:
    from transformers import AutoTokenizer

    prompt_ids = encode_prompt(AutoTokenizer.from_pretrained(POCKET_MODEL), next(iter(questions("train"))).text)
    spec = TraceSpec(head=name, score_every=1, score_finish=True)
    sampling = Sampling(n=2, max_tokens=220, seed=1)
    for trace in engine.sample([Question("q", token_ids=tuple(prompt_ids))], sampling, spec):
        ends = [i + 1 for i, token in enumerate(trace.token_ids) if token == STEP_END]
        assert len(ends) > 3
        for until in (ends[0], ends[2], trace.num_tokens - 1):
            expected = mean_of_steps(prompt_ids, trace, file, until)
            assert trace.scores[until] == pytest.approx(expected, abs=1e-4)
        assert trace.scores[ends[2] - 1] == trace.scores[ends[1]] != trace.scores[ends[2]]


def test_both_engines_score_as_step_defines_it(
    vllm_engine: VLLMEngine, model: Path, file: Path, tmp_path: Path
) -> None:
    from arrol_tts.engine.transformers_engine import TransformersEngine

    head = import_step_scorer(file, str(model))
    assert head.config.pool_after == [STEP_END]
    save_imported(head, file, tmp_path)
    vllm_engine.load_head(tmp_path, "steps")
    check_scores(vllm_engine, "steps", file)
    check_scores(TransformersEngine(model, head=QualityHead.from_pretrained(tmp_path)), "", file)


def test_one_command_makes_a_head_that_votes(model: Path, file: Path, tmp_path: Path) -> None:
    out, prompt = tmp_path / "head", tmp_path / "prompt.txt"
    prompt.write_text("{question}")
    arguments = ["import", str(file), "--base-model", str(model), "--out", str(out), "--prompt", str(prompt)]
    done = CliRunner().invoke(app, [*arguments, "--at", "16"])
    assert done.exit_code == 0, done.output
    assert "1 tokens end a step" in done.output
    assert "Apache-2.0" in (out / "README.md").read_text()
    voter = WeightedVoter.from_pretrained(out, model=str(model), engine="transformers")
    result = voter.solve("2+3*4-5", n=3, max_tokens=120)
    assert [trace.finish_reason for trace in result.traces] == ["stop"] * 3  # nothing is pruned unless asked for
    assert all(trace.score is not None and trace.score != 0.5 for trace in result.traces)
    pruned = voter.solve("2+3*4-5", n=4, keep=0.5, max_tokens=120)
    assert sum(trace.finish_reason == "pruned" for trace in pruned.traces) == 2


def test_the_model_is_asked_and_sampled_as_it_was_for_the_scorer(model: Path, file: Path, tmp_path: Path) -> None:
    save_imported(import_step_scorer(file, str(model)), file, tmp_path)
    config = read_head_config(tmp_path)
    assert config.sampling == {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "max_tokens": 32768}
    assert [message["role"] for message in config.prompt] == ["system", "user"]
    assert config.base_revision is not None


def test_a_collection_cannot_tell_where_steps_end() -> None:
    config = QualityHeadConfig("m", 2, pooling="steps", pool_after=[STEP_END])
    with pytest.raises(InputError, match="a collection does not say which these are"):
        States(np.zeros((3, 2), np.float16), np.arange(3), np.array([0, 3])).read_by(config)


def test_a_file_that_is_no_scorer_ends_the_command_with_the_reason(model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nonsense")
    done = CliRunner().invoke(app, ["import", str(tmp_path / "x.pt"), "--base-model", str(model)])
    assert done.exit_code == 2
    assert "cannot be read as a torch file of numbers alone" in done.output
