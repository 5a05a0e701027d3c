"""Texts that end a trace, such as the next question that a base model would go on with.

vLLM looks for such texts in its front end, after the step, where the scheduler's record of the trace is out of
reach; every engine of ours looks here, so that a trace ends, and is scored, at the same token in each. What a
reasoning model thinks is no place for them: only its answer ends a trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arrol_tts.engine.decoder import Decoder

CONTEXT = 4
"""Tokens decoded before new ones: some tokenizers write a token differently where a text begins."""

UNFINISHED = 8
"""Tokens after which a character that is still in parts is taken for no character: the longest has four bytes."""


class StopTexts:
    """Looks for texts in what traces write.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.decoder = Decoder(tokenizer)
        self._pieces: dict[int, str] = {}

    def watch(self, texts: Sequence[str], after: int = 0) -> Watched:
        """Begin to look for texts in a trace that has written nothing yet.

        Args:
            texts: that end it.
            after: tokens with which none of the texts ends the trace yet, although it may begin in them.
        """
        return Watched(self, texts, after)

    def piece(self, token_id: int) -> str:
        """The text of one token alone; a part of a character is U+FFFD."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self.decoder([token_id])
        return piece


class Watched:
    """One trace's text, as much of its end as a stop text may begin in; every token is decoded about twice."""

    def __init__(self, stop_texts: StopTexts, texts: Sequence[str], after: int) -> None:
        self._stop_texts, self._texts, self._after = stop_texts, texts, after
        self._lasts = tuple({text[-1] for text in texts})
        self._longest = max(map(len, texts))
        # Every token is at least a byte; one more, because tokenizers may drop the space that a text begins with.
        self._window = max(len(text.encode()) for text in texts) + 1
        self._written = 0
        self._tail = ""  # what was decoded, and searched
        self._ids: list[int] = []  # the tokens of its end, then those that were not decoded yet
        self._known = 0  # how many are of its end
        self._passed = 0  # characters behind it that end nothing: they were written in the first tokens

    def add(self, token_id: int) -> str:
        """Take in the next token.

        Returns:
            The text that the token completes, from its first character to the end of what has been written, which
            may be more than the text itself where a token goes on behind it; "" while there is none.
        """
        self._ids.append(token_id)
        self._written += 1
        if len(self._ids) > 2 * self._window + CONTEXT:
            # No text reaches so far back.
            del self._ids[: -self._window]
            self._tail, self._known, self._passed = "", 0, 0
        if self._written <= self._after:
            if self._written == self._after:
                self._pass(self._decode())
            return ""
        piece = self._stop_texts.piece(token_id)
        # Most tokens do not even hold a text's last character.
        if piece and "\ufffd" not in piece and not any(last in piece for last in self._lasts):
            return ""
        searched = len(self._tail) + self._passed
        tail, new = self._tail, self._decode()
        recent = tail + new
        # A text that was written in full before does not count: it would have ended the trace, if it was to.
        starts = [at for text in self._texts if (at := recent.find(text, max(0, searched - len(text) + 1))) >= 0]
        if not starts:
            return ""
        self._pass(new)
        return recent[min(starts) :]

    def _pass(self, new: str) -> None:
        """What ends in this text is known, and does not count again."""
        self._passed = len(new.rstrip("\ufffd")) if len(self._ids) > self._known else 0

    def _decode(self) -> str:
        """The text of the tokens that were not decoded yet, which stay so while they end within a character."""
        ids = self._ids
        decode = self._stop_texts.decoder
        new = decode(ids)[len(decode(ids[: self._known])) :]
        if not new.endswith("\ufffd") or len(ids) - self._known > UNFINISHED:
            self._tail = (self._tail + new)[1 - self._longest :] if self._longest > 1 else ""
            self._ids = ids[-CONTEXT:]
            self._known, self._passed = len(self._ids), 0
        return new


def before_stop(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the texts that end it."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]
