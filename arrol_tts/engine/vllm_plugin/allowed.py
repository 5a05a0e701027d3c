"""Signals that a server gives only where it was started with them, because all its requests pay for them.

Confidences take a pass over the logits of the whole batch as soon as anybody asks for them, and hidden states are
large. A head's scores cost next to nothing and need no leave.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from arrol_tts.errors import InputError
from arrol_tts.stopping import TraceSpec

SIGNALS = ("confidence", "features")
"""What a server can be started to allow."""

EVERYTHING = frozenset(SIGNALS)


def allowed_signals(options: Mapping[str, Any]) -> frozenset[str]:
    """What the plug-in's options in vLLM's additional config allow.

    Raises:
        InputError: when that is no list of signals that there are.
    """
    allow = options.get("allow", ())
    if isinstance(allow, str) or not isinstance(allow, Collection) or not set(allow) <= EVERYTHING:
        raise InputError(f"allow is {allow!r}; it must be a list of {' and '.join(SIGNALS)}")
    return frozenset(allow)


def check_allowed(spec: TraceSpec, allowed: Collection[str]) -> None:
    """Refuse a spec that asks for a signal which the server was not started with.

    Raises:
        InputError: naming the field, and what to start the server with.
    """
    asked = {
        "confidence": "confidence, confidence_window, self_certainty and the rule confidence_floor"
        if spec.confidences or spec.self_certainty
        else "",
        "features": "features_at, features_every and features_finish"
        if spec.features_at or spec.features_every or spec.features_finish
        else "",
    }
    for signal, fields in asked.items():
        if fields and signal not in allowed:
            raise InputError(
                f"this server does not give {fields}, which all its requests would pay for: start it with --allow "
                f"{signal} (docs/serving.md), or leave them out"
            )
