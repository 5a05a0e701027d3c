"""Texts that end a trace, such as the next question that a base model would go on with.

vLLM looks for such texts in its front end, after the step, where the scheduler's record of the trace is out of
reach; every engine of ours looks here, so that a trace ends, and is scored, at the same token in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StopTexts:
    """Looks for texts in what traces write.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def written(self, token_ids: Sequence[int], texts: Sequence[str], end: int | None = None) -> bool:
        """Whether a token completes one of the texts; to be asked at every token.

        Args:
            token_ids: of the trace.
            texts: that end it.
            end: number of tokens up to the one in question; None: all.
        """
        end = len(token_ids) if end is None else end
        last = token_ids[end - 1]
        piece = self._pieces.get(last)
        if piece is None:
            piece = self._pieces[last] = self._decode([last])
        # Most tokens do not even hold a text's last character. A part of one decodes to U+FFFD.
        if piece and "\ufffd" not in piece and not any(text[-1] in piece for text in texts):
            return False
        # Every token is at least a byte; one more, because tokenizers may drop the space that a text begins with.
        longest = max(len(text.encode()) for text in texts)
        recent = self._decode(token_ids[max(0, end - longest - 1) : end])
        return any(text in recent for text in texts)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))


def before_stop(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the texts that end it."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]
