"""The pocket model with some of its tokens spelled otherwise: weights, sampling and engines are real.

Its solutions are steps with a newline between them, and then ``answer 7``. Where the newline is spelled as what
begins a thinking and the letter a as what ends it, the steps are its thinking and ``nswer 7`` is its answer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from arrol_tts.pocket import POCKET_MODEL


def spelled_model(folder: Path, spelled: Mapping[str, str], *, special: bool = False) -> Path:
    """Write the model into a folder.

    Args:
        folder: which is made.
        spelled: ``{token of the pocket model: what it is to be}``.
        special: make them special tokens, which tokenizers leave out of texts.
    """
    shutil.copytree(POCKET_MODEL, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for token, text in spelled.items():
        number = vocabulary[text] = vocabulary.pop(token)
        as_pad = tokenizer["added_tokens"][0]
        tokenizer["added_tokens"].append(as_pad | {"id": number, "content": text, "special": special})
    path.write_text(json.dumps(tokenizer))
    return folder


def thinking_model(folder: Path, begin: str = "<think>", end: str = "</think>", *, special: bool = False) -> Path:
    """The model that thinks: prompts end inside a thinking, or behind it where ``enable_thinking`` is false."""
    spelled_model(folder, {"\n": begin, "a": end}, special=special)
    template = "{{ bos_token }}{{ messages[-1]['content'] }}BEGIN{% if enable_thinking is false %}END{% endif %}"
    (folder / "chat_template.jinja").write_text(template.replace("BEGIN", begin).replace("END", end))
    return folder
