"""Files that appear whole or not at all, their hashes, and folders that are taken for one purpose."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from arrol_tts.errors import InputError


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all, and stays after a power cut.

    Raises:
        OSError: when the disk is full, among others; what was there stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """`write_atomic` of indented JSON.

    Raises:
        TypeError: when the data is not JSON's.
        OSError: as `write_atomic`.
    """
    write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_file(path: Path, busy: Exception) -> IO[str]:
    """Open a lock file that no other process holds.

    Args:
        path: of the file.
        busy: what to raise while another has it.

    Returns:
        The file, whose lock goes when it is closed or the process ends, however it ends.
    """
    import fcntl

    file = open(path, "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise busy from None
    return file


def claim_folder(
    folder: Path, record_name: str, record: Mapping[str, Any], *, error: type[InputError] = InputError
) -> dict[str, Any] | None:
    """Take a folder for what a record describes, or tell what it was taken for before.

    An empty or missing folder is made, and the record written into it as JSON. Whether a record that is there
    already is the same is for the caller to say: see `differences`.

    Args:
        folder: to write into.
        record_name: of the file that holds the record.
        record: JSON-ready.
        error: what to raise.

    Returns:
        The record that was there, None where this one was written now.

    Raises:
        InputError: as ``error``, when the folder holds files and no record, or a record that is damaged.
        OSError: when it cannot be written.
    """
    path = folder / record_name
    if path.exists():
        try:
            there = json.loads(path.read_text())
        except ValueError as damage:
            raise error(f"{path} cannot be read: {damage}") from None
        if not isinstance(there, dict):
            raise error(f"{path} cannot be read: it holds no object")
        return there
    if folder.is_dir() and any(folder.iterdir()):
        raise error(f"{folder} holds something else: choose another output folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(record))
    return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Fields in which two JSON-ready records differ.

    Yields:
        ``(name, before, now)`` in the order of the names; a field inside a section is named ``section.field``,
        and a missing one is None.
    """
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from ((f"{name}.{inner}", x, y) for inner, x, y in differences(old, new))
        elif old != new:
            yield name, old, new
