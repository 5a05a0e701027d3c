"""Decoder: token ids as text, with the delimiters of a thinking where a tokenizer would leave them out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from arrol_tts.stopping import TraceLog
from arrol_tts.thinking import DELIMITER_TOKENS, opens_thinking, split_thinking

TAIL = 64
"""Tokens of a prompt's end in which a thinking may begin; more than the longest delimiter has."""


class Decoder:
    """Decodes what traces write.

    Some models delimit their thinking by special tokens, which a tokenizer leaves out together with the
    end-of-sequence token. They are kept here.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        names, numbers = (getattr(tokenizer, f"all_special_{name}", ()) for name in ("tokens", "ids"))
        special = dict(zip(names, numbers, strict=True))
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special |= {str(token): number for number, token in added.items() if token.special}
        kept = [tokens for tokens in DELIMITER_TOKENS if special.keys() >= set(tokens)]
        self._kept = {special[token]: token for tokens in kept for token in tokens}

    def __call__(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        kept = self._kept
        if not kept or kept.keys().isdisjoint(token_ids):
            return self._decode(token_ids)
        runs = groupby(token_ids, key=kept.get)
        return "".join(self._decode(list(run)) if delimiter is None else delimiter for delimiter, run in runs)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends inside a thinking, which the model then goes on with."""
        return opens_thinking(str(self._tokenizer.decode(list(prompt[-TAIL:]), skip_special_tokens=False)))

    def is_thinking(self, log: TraceLog, token_ids: Sequence[int]) -> bool:
        """Whether a trace is still inside its thinking; for a trace that is written on, to be asked again.

        Args:
            log: of the trace; keeps what is known by then, so that nothing is decoded twice.
            token_ids: all that it has written.
        """
        if log.thinking is not False:
            # From a little before what was looked at last, for a delimiter may lie across.
            recent = self(token_ids[max(0, log.thought - TAIL) :])
            log.thinking = split_thinking(recent, opened=bool(log.thinking)).is_open
            log.thought = len(token_ids)
        return log.thinking
