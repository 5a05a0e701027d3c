"""What scheduler and worker say to each other, carried on vLLM's own per-step objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from arrol_tts.engine.signals import HeadReading

CONFIG_KEY = "arrol"
"""Our entry in vLLM's additional_config, in SamplingParams.extra_args and in kv_transfer_params."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the scheduler asks of a step; travels on SchedulerOutput.

    Attributes:
        heads: names of the heads to run.
        confidence: compute DeepConf's token confidence.
        features: hand over the hidden vectors themselves.
        self_certainty: compute the token's self-certainty.
    """

    heads: tuple[str, ...]
    confidence: bool
    features: bool = False
    self_certainty: bool = False


@dataclass(frozen=True, slots=True)
class Signals:
    """What the worker saw in a step; travels on ModelRunnerOutput.

    Attributes:
        rows: ``{request id: its first row}``; more rows follow with speculative decoding.
        scores: what each head read from each row, by the name of the head.
        confidence: DeepConf's confidence of the token sampled from each row, or None.
        features: hidden vector of each row, float32 ``[rows, hidden_size]``, or None.
        self_certainty: of the token sampled from each row, or None.
        error: why there is nothing of it, when the worker could not read it; "" otherwise.
    """

    rows: dict[str, int]
    scores: dict[str, HeadReading]
    confidence: list[float] | None
    features: NDArray[np.float32] | None = None
    self_certainty: list[float] | None = None
    error: str = ""
