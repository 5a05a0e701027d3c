"""A model of another architecture and width through the three commands, as its owner would call them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arrol_tts.errors import HeadError
from arrol_tts.head_config import read_head_config
from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL
from arrol_tts.voter import WeightedVoter

pytest.importorskip("vllm")

WIDTH = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained GPT-NeoX of width 96 with the pocket model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    folder: Path = tmp_path_factory.mktemp("model") / "neox"
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    return folder


def arrol_train(*arguments: object) -> str:
    command = [sys.executable, "-m", "arrol_train.cli", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ends_soon(row: dict[str, str], text: str) -> float:
    """What an untrained model can be right about: whether its text is short."""
    return float(len(text) < int(row["answer"]))


@pytest.mark.slow
def test_another_architecture_needs_no_other_code(model: Path, tmp_path: Path) -> None:
    data, out, head = tmp_path / "data.jsonl", tmp_path / "collection", tmp_path / "head"
    rows = [{"question": f"{i}+{i + 1}", "answer": 20} for i in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = arrol_train(
        *["collect", "--model", model, "--data", data, "--out", out, "--n", "8", "--max-tokens", "48"],
        *["--reward", f"{__name__}:ends_soon", "--set", "dtype=float32", "--set", "max_model_len=128"],
        *["--set", "top_k=5", "--set", "max_num_seqs=32", "--set", "kv_cache_memory_bytes=67108864"],
        *["--top-k", "25", "--repetition-penalty", "1.01", "--stop-token-id", "3"],
    )
    assert "160 to do" in output
    assert "tokens/s" in output
    arrol_train("head", out, "--out", head, "--sizes", "16", "--weight-decays", "0.05", "--seeds", "1")
    assert "How early does it know?" in arrol_train("inspect", head)
    config = read_head_config(head)
    assert (config.base_model, config.hidden_size) == (str(model), WIDTH)
    assert config.sampling == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 25,
        "repetition_penalty": 1.01,
        "max_tokens": 48,
        "stop_token_ids": [3],
    }
    with pytest.raises(HeadError, match="width 96.*width 128"):
        WeightedVoter.from_pretrained(head, model=str(POCKET_MODEL))
    with pytest.raises(HeadError, match="width 128.*width 96"):
        WeightedVoter.from_pretrained(POCKET_HEAD, model=str(model))
