"""ARRoL: more right answers from a language model for fewer generated tokens.

Quality-weighted voting and early stopping over parallel samples. Names load when first used, so that
importing this package costs nothing and voting over recorded traces needs neither torch nor vLLM.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arrol_tts.answers import answers_equal, extract_answer, group_answers
    from arrol_tts.calibration import AnswerCalibration
    from arrol_tts.combined import CombinedVoter, fit_combined
    from arrol_tts.consensus import Consensus
    from arrol_tts.engine.request import Question, Sampling
    from arrol_tts.engine.server_engine import ServerEngine
    from arrol_tts.errors import ArrolError, HeadError, ServerError
    from arrol_tts.events import Ended, Event, Progress, Voted
    from arrol_tts.head import QualityHead
    from arrol_tts.head_config import QualityHeadConfig
    from arrol_tts.recorded import read_traces
    from arrol_tts.replay import replay
    from arrol_tts.stopping import Budget, ConfidenceFloor, KeepShare, Threshold, TraceSpec
    from arrol_tts.store import TraceStore
    from arrol_tts.trace import Trace
    from arrol_tts.voter import WeightedVoter
    from arrol_tts.voting import METHODS, VoteResult, register, vote
    from arrol_tts.waves import Waves, replay_waves

_HOMES = {
    "METHODS": "voting",
    "AnswerCalibration": "calibration",
    "ArrolError": "errors",
    "Budget": "stopping",
    "CombinedVoter": "combined",
    "ConfidenceFloor": "stopping",
    "Consensus": "consensus",
    "Ended": "events",
    "Event": "events",
    "HeadError": "errors",
    "KeepShare": "stopping",
    "Progress": "events",
    "QualityHead": "head",
    "QualityHeadConfig": "head_config",
    "Question": "engine.request",
    "Sampling": "engine.request",
    "ServerEngine": "engine.server_engine",
    "ServerError": "errors",
    "Threshold": "stopping",
    "Trace": "trace",
    "TraceSpec": "stopping",
    "TraceStore": "store",
    "VoteResult": "voting",
    "Voted": "events",
    "Waves": "waves",
    "WeightedVoter": "voter",
    "answers_equal": "answers",
    "extract_answer": "answers",
    "fit_combined": "combined",
    "group_answers": "answers",
    "read_traces": "recorded",
    "register": "voting",
    "replay": "replay",
    "replay_waves": "waves",
    "vote": "voting",
}

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "AnswerCalibration",
    "ArrolError",
    "Budget",
    "CombinedVoter",
    "ConfidenceFloor",
    "Consensus",
    "Ended",
    "Event",
    "HeadError",
    "KeepShare",
    "Progress",
    "QualityHead",
    "QualityHeadConfig",
    "Question",
    "Sampling",
    "ServerEngine",
    "ServerError",
    "Threshold",
    "Trace",
    "TraceSpec",
    "TraceStore",
    "VoteResult",
    "Voted",
    "Waves",
    "WeightedVoter",
    "answers_equal",
    "extract_answer",
    "fit_combined",
    "group_answers",
    "read_traces",
    "register",
    "replay",
    "replay_waves",
    "vote",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
