"""Weighted voting: a method turns a question's traces into weights, and the heaviest answer wins.

`tally` votes, `registry` knows the methods, `methods` are the built-in ones, `result` is what comes back.
"""

from arrol_tts.voting.methods import linear_ranks
from arrol_tts.voting.registry import METHODS, Method, MethodInfo, Weights, register, resolve_method
from arrol_tts.voting.result import AnswerRow, TokenLedger, VoteResult
from arrol_tts.voting.tally import answered, vote

__all__ = [
    "METHODS",
    "AnswerRow",
    "Method",
    "MethodInfo",
    "TokenLedger",
    "VoteResult",
    "Weights",
    "answered",
    "linear_ranks",
    "register",
    "resolve_method",
    "vote",
]
