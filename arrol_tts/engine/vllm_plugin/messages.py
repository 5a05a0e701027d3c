"""What scheduler and worker say to each other, carried on vLLM's own per-step objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from arrol_tts.engine.signals import HeadKind

CONFIG_KEY = "arrol"
"""Our entry in vLLM's additional_config, in SamplingParams.extra_args and in kv_transfer_params."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the scheduler asks of a step; travels on SchedulerOutput.

    Attributes:
        heads: names of the heads to run.
        confidence: compute DeepConf's token confidence.
        self_certainty: compute the token's self-certainty.
        features: ids of the requests whose hidden vectors may be kept.
    """

    heads: tuple[str, ...] = ()
    confidence: bool = False
    self_certainty: bool = False
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Signals:
    """What the worker saw in a step; travels on ModelRunnerOutput, whose ``req_id_to_index`` numbers the requests.

    Attributes:
        numbers: float32 ``[numbers, rows]``: what each head reads, then the confidence, then the self-certainty.
        heads: the heads that were run, in that order.
        confidence: whether DeepConf's confidence of the token sampled from each row is there.
        self_certainty: whether the self-certainty is.
        firsts: the first row of each request, int32; None where each has one, as all have without drafts.
        features: float32 ``[rows kept, hidden_size]``, or None.
        kept: the first row in ``features`` of each request that has some.
        error: why there is nothing of it, when the worker could not read it; "" otherwise.
    """

    numbers: NDArray[np.float32] | None = None
    heads: Mapping[str, HeadKind] = field(default_factory=dict)
    confidence: bool = False
    self_certainty: bool = False
    firsts: NDArray[np.int32] | None = None
    features: NDArray[np.float32] | None = None
    kept: Mapping[str, int] = field(default_factory=dict)
    error: str = ""

    def of_heads(self) -> Iterator[tuple[str, HeadKind, NDArray[np.float32]]]:
        """The name of each head, its kind, and what it read: ``[1 or 2, rows]``."""
        first = 0
        for name, kind in self.heads.items():
            assert self.numbers is not None
            yield name, kind, self.numbers[first : first + kind.width]
            first += kind.width

    @property
    def confidences(self) -> NDArray[np.float32] | None:
        """``[rows]``, or None."""
        return self.numbers[-1 - self.self_certainty] if self.confidence and self.numbers is not None else None

    @property
    def self_certainties(self) -> NDArray[np.float32] | None:
        """``[rows]``, or None."""
        return self.numbers[-1] if self.self_certainty and self.numbers is not None else None
