"""Replay a stopping rule over recorded traces: what it would have kept, and what that would have cost.

The rule is applied by the same Monitor as inside the engines, fed from the recorded scores, so one
sampled set of traces serves every keep ratio and every subset of its samples.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from arrol_tts.errors import InputError
from arrol_tts.stopping import KeepShare, Monitor, Threshold, TraceSpec
from arrol_tts.trace import Trace


def replay(traces: Sequence[Trace], rule: KeepShare | Threshold) -> list[Trace]:
    """The traces of one question as they would have been under a rule.

    Args:
        traces: of one question, sampled without pruning, with scores at the rule's position (or at the
            finish, where a trace ended before).
        rule: the rule.

    Returns:
        The same traces in the same order; the pruned ones are cut to ``rule.at + 1`` tokens (a score at
        k is known when token k + 1 is sampled) and have lost their answer. Text is not cut.

    Raises:
        InputError: when a trace that reached the position has no score there.
    """
    monitor = Monitor()
    spec = TraceSpec(group="replay", size=len(traces), rules=(rule,))
    for i in range(len(traces)):
        monitor.add(i, spec)
    for i, trace in enumerate(traces):
        position = min(rule.at, trace.num_tokens - 1)
        if position not in trace.scores:
            raise InputError(
                f"sample {trace.sample_id} of question {trace.question_id!r} has no score at token {position}; "
                f"sample with score_at=({rule.at},) and score_finish=True"
            )
        finished = trace.num_tokens <= rule.at + 1
        monitor.observe(i, position, score=trace.scores[position], finished=finished)
    result = list(traces)
    for key, verdict in monitor.take_verdicts().items():
        assert isinstance(key, int)
        trace = traces[key]
        result[key] = replace(
            trace,
            answer=None,
            correct=None,
            num_tokens=rule.at + 1,
            finish_reason="pruned",
            detail=verdict.detail,
            scores={k: s for k, s in trace.scores.items() if k <= rule.at},
        )
    return result


def with_random_scores(traces: Sequence[Trace], seed: int = 0) -> list[Trace]:
    """The traces of one question as a head that knows nothing would have scored them: the control of a replay.

    Args:
        traces: of one question, with scores.
        seed: of the draws, which differ from question to question.

    Returns:
        Copies with uniform random scores at the same positions.
    """
    rng = random.Random(f"{seed}/{traces[0].question_id}")
    return [replace(trace, scores={position: rng.random() for position in trace.scores}) for trace in traces]
