"""What scheduler and worker say to each other, carried on vLLM's own per-step objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIG_KEY = "arrol"
"""Our entry in vLLM's additional_config, in SamplingParams.extra_args and in kv_transfer_params."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the scheduler asks of a step; travels on SchedulerOutput.

    Attributes:
        scores: run the head.
        confidence: compute DeepConf's token confidence.
        features: hand over the hidden vectors themselves.
    """

    scores: bool
    confidence: bool
    features: bool = False


@dataclass(frozen=True, slots=True)
class Signals:
    """What the worker saw in a step; travels on ModelRunnerOutput.

    Attributes:
        rows: ``{request id: (first row, end row)}``; more than one row with speculative decoding.
        scores: the head's probability of each row, None without a head.
        confidence: DeepConf's confidence of the token sampled from each row, or None.
        features: hidden vector of each row, float32 ``[rows, hidden_size]``, or None.
    """

    rows: dict[str, tuple[int, int]]
    scores: list[float] | None
    confidence: list[float] | None
    features: NDArray[np.float32] | None = None
