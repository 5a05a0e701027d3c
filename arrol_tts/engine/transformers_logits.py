"""From a model's logits to the distribution that is sampled from, in vLLM's order.

transformers applies ``min_p`` after ``top_p`` in its own ``generate``, and counts prompts into every penalty; vLLM
(``v1/sample/sampler.py``) does neither, and traces of one seed must not depend on the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

if TYPE_CHECKING:
    from arrol_tts.engine.request import Sampling


class Distribution:
    """The parameters of a sampling at work on logits.

    Args:
        sampling: the parameters.
        eos: ids of the model's own end-of-sequence tokens.

    Attributes:
        ends: ids of all tokens that end a trace.
    """

    def __init__(self, sampling: Sampling, eos: Collection[int]) -> None:
        self.sampling, self.ends = sampling, {*eos, *sampling.stop_token_ids}
        self._repetition: Any = None
        if sampling.repetition_penalty != 1:
            self._repetition = RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))
        self._warp = LogitsProcessorList()
        if sampling.temperature not in (0, 1):
            self._warp.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.min_p:
            self._warp.append(MinPLogitsWarper(float(sampling.min_p)))
        if sampling.top_k:
            self._warp.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warp.append(TopPLogitsWarper(float(sampling.top_p)))

    def __call__(
        self, logits: torch.Tensor, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """The logits to sample the next token from; under a temperature of 0 the largest is to be taken.

        Args:
            logits: the model's, float32 ``[rows, vocabulary]``; they are not changed.
            prompts: token ids of each row's prompt.
            written: token ids that each row has generated.
        """
        if self._adjusts:
            logits = torch.cat(
                [self._adjust(logits[i : i + 1], prompts[i], written[i]) for i in range(len(logits))]
            )
        if self.sampling.temperature == 0:
            return logits
        return cast(torch.Tensor, self._warp(cast(Any, None), cast(Any, logits)))

    @property
    def _adjusts(self) -> bool:
        sampling = self.sampling
        penalised = sampling.presence_penalty or sampling.frequency_penalty
        return bool(sampling.min_tokens or penalised or self._repetition is not None)

    def _adjust(self, logits: torch.Tensor, prompt: Sequence[int], written: Sequence[int]) -> torch.Tensor:
        """Minimum length and penalties of one row, ``[1, vocabulary]``."""
        sampling = self.sampling
        logits = logits.clone()
        if len(written) < sampling.min_tokens:
            logits[:, sorted(self.ends)] = -torch.inf
        if self._repetition is not None:
            seen = torch.tensor([[*prompt, *written]], device=logits.device)
            logits = self._repetition(seen, logits)
        if written and (sampling.presence_penalty or sampling.frequency_penalty):
            tokens, counts = torch.tensor(written, device=logits.device).unique(return_counts=True)
            logits[0, tokens] -= sampling.frequency_penalty * counts + sampling.presence_penalty
        return logits
