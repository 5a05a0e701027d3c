"""Stopping rules and the Monitor that applies them: the same code in every engine.

A position k is counted in generated tokens: the score at k is that of the trace up to the row whose input
is the k-th generated token. A head without pooling reads that row's hidden state alone; one that pools, the
states of all rows from 0, the prompt's end, to k that are multiples of its stride. The step that computes
row k has already sampled token k + 1, so a trace pruned at k has k + 1 tokens (more under speculative
decoding, and one more where vLLM schedules asynchronously and the trace waited for its group).

`rules` holds each rule with what it remembers while it runs, `selection` the policies by which one of them
chooses, `spec` what is asked of a trace, `log` what was seen of it, and `monitor` ties them to an engine: the
engine tells it what it sees (``add``, ``observe``, ``drop``), asks which traces to stop (``take_verdicts``) and
which to leave unscheduled for now (``is_held``). Nothing here knows of models, tensors or schedulers.
"""

from arrol_tts.stopping.log import TraceLog
from arrol_tts.stopping.monitor import Monitor
from arrol_tts.stopping.rules import (
    RULES,
    Budget,
    ConfidenceFloor,
    KeepShare,
    KeepSubset,
    Rule,
    Threshold,
    Verdict,
)
from arrol_tts.stopping.spec import TraceSpec

__all__ = [
    "RULES",
    "Budget",
    "ConfidenceFloor",
    "KeepShare",
    "KeepSubset",
    "Monitor",
    "Rule",
    "Threshold",
    "TraceLog",
    "TraceSpec",
    "Verdict",
]
