"""Which weights are behind a model's name: its commit on the hub, or a fingerprint of its folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

CHUNK_BYTES = 1 << 16
CHUNKS = 64
"""Read of each weights file, at even distances: training changes them everywhere, and large files stay quick."""


def model_revision(model: str | os.PathLike[str]) -> str | None:
    """What tells this model from another one of the same name; None when there is nothing to tell by.

    Args:
        model: local folder or hub id.

    Returns:
        ``sha256:...`` of a folder's config and of samples of its weights; the commit of a hub id.
    """
    folder = Path(model)
    if folder.is_dir():
        return "sha256:" + _fingerprint(folder)
    from transformers import AutoConfig

    commit = getattr(AutoConfig.from_pretrained(str(model)), "_commit_hash", None)
    return str(commit) if commit else None


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for suffix in ("safetensors", "bin") for p in folder.glob(f"*.{suffix}")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for i in range(CHUNKS):
                file.seek(max(0, size - CHUNK_BYTES) * i // (CHUNKS - 1))
                digest.update(file.read(CHUNK_BYTES))
    config = folder / "config.json"
    if config.exists():
        digest.update(config.read_bytes())
    return digest.hexdigest()
