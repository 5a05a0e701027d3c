"""Stopping rules: a file each, the rule as plain data beside what it remembers while it runs.

A new rule derives from `Rule` and is listed in `RULES`.
"""

from arrol_tts.stopping.rules.base import GroupState, Rule, Verdict, Verdicts, Window
from arrol_tts.stopping.rules.budget import Budget
from arrol_tts.stopping.rules.confidence_floor import ConfidenceFloor
from arrol_tts.stopping.rules.keep_share import KeepShare
from arrol_tts.stopping.rules.keep_subset import KeepSubset
from arrol_tts.stopping.rules.threshold import Threshold

RULES: dict[str, type[Rule]] = {
    rule.kind: rule for rule in (Threshold, KeepShare, ConfidenceFloor, Budget, KeepSubset)
}
"""Every rule by its kind, under which it is serialised."""

__all__ = [
    "RULES",
    "Budget",
    "ConfidenceFloor",
    "GroupState",
    "KeepShare",
    "KeepSubset",
    "Rule",
    "Threshold",
    "Verdict",
    "Verdicts",
    "Window",
]
