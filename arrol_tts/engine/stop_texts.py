"""Texts that end a trace, such as the next question that a base model would go on with.

vLLM looks for such texts in its front end, after the step, where the scheduler's record of the trace is out of
reach; every engine of ours looks here, so that a trace ends, and is scored, at the same token in each. What a
reasoning model thinks is no place for them: only its answer ends a trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arrol_tts.engine.decoder import Decoder
from arrol_tts.stopping import TraceLog


class StopTexts:
    """Looks for texts in what traces write.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.decoder = Decoder(tokenizer)
        self._pieces: dict[int, str] = {}

    def written(
        self, token_ids: Sequence[int], texts: Sequence[str], end: int | None = None, after: int = 0
    ) -> str:
        """The text that a token completes; to be asked at every token.

        Args:
            token_ids: of the trace.
            texts: that end it.
            end: number of tokens up to the one in question; None: all.
            after: tokens with which none of the texts ends the trace yet, although it may begin in them.

        Returns:
            The text from its first character to the end of what has been written, which may be more than the text
            itself where a token goes on behind it; "" while there is none.
        """
        end = len(token_ids) if end is None else end
        if end <= after:
            return ""
        last = token_ids[end - 1]
        piece = self._pieces.get(last)
        if piece is None:
            piece = self._pieces[last] = self.decoder([last])
        # Most tokens do not even hold a text's last character. A part of one decodes to U+FFFD.
        if piece and "\ufffd" not in piece and not any(text[-1] in piece for text in texts):
            return ""
        # Every token is at least a byte; one more, because tokenizers may drop the space that a text begins with.
        longest = max(len(text.encode()) for text in texts)
        window = token_ids[max(0, end - longest - 1) : end]
        recent = self.decoder(window)
        # A text that was written in full before does not count: it would have ended the trace, if it was to.
        known = len(self.decoder(window[:-1]).rstrip("\ufffd")) if after else 0
        starts = [at for text in texts if (at := recent.find(text, max(0, known - len(text) + 1))) >= 0]
        return recent[min(starts) :] if starts else ""

    def ending(self, log: TraceLog, token_ids: Sequence[int], end: int | None = None, after: int = 0) -> str:
        """As ``written``, of the texts that end a trace: a thinking may hold them.

        Args:
            log: of the trace.
            token_ids: as in ``written``.
            end: as in ``written``.
            after: as in ``written``.
        """
        text = self.written(token_ids, log.spec.stop, end, after)
        return "" if text and self.decoder.is_thinking(log, token_ids[:end]) else text


def before_stop(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the texts that end it."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]
