"""Read hidden states of finished traces with one forward pass of the language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from arrol_tts.engine.base import encode_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from arrol_tts.trace import Trace


def hidden_states(
    model: str | Path,
    questions: Sequence[str],
    traces: Sequence[Trace],
    positions: Sequence[Sequence[int]],
    *,
    batch_size: int = 128,
) -> Iterator[NDArray[np.float32]]:
    """Last-layer states of traces at positions.

    Args:
        model: path or hub id of the language model that wrote the traces.
        questions: the question text of each trace.
        traces: with ``token_ids``.
        positions: of each trace, in generated tokens: the state at k has the k-th generated token as
            its input, k from 0 (the prompt's end) to ``num_tokens - 1`` or ``num_tokens``.
        batch_size: traces in a forward pass.

    Yields:
        float32 ``[len(positions of the trace), hidden_size]`` for each trace, in order.

    Raises:
        ValueError: when a trace has no token ids.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    backbone = AutoModelForCausalLM.from_pretrained(str(model)).eval().base_model
    for first in range(0, len(traces), batch_size):
        rows, starts = [], []
        for question, trace in zip(
            questions[first : first + batch_size], traces[first : first + batch_size], strict=True
        ):
            if trace.token_ids is None:
                raise ValueError(f"sample {trace.sample_id} of {trace.question_id!r} has no token ids")
            prompt = encode_prompt(tokenizer, question)
            starts.append(len(prompt) - 1)
            rows.append(torch.tensor(prompt + trace.token_ids))
        # Padding is on the right, where causal attention never looks.
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        with torch.inference_mode():
            states = backbone(input_ids=batch).last_hidden_state.float()
        for i, start in enumerate(starts):
            yield states[i, [start + k for k in positions[first + i]]].numpy()
