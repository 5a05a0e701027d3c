"""The built-in pocket model (synthetic): a tiny language model, its task and its quality head.

Small enough to sample, train and reinforce on two CPU cores, so that everybody can see the whole method
run in minutes. Its figures say how the machinery behaves, not how a real model would do.
"""

from pathlib import Path

from arrol_tts.pocket.task import PocketQuestion, questions, verify

POCKET_MODEL = Path(__file__).parent / "model"
POCKET_HEAD = Path(__file__).parent / "head"

__all__ = ["POCKET_HEAD", "POCKET_MODEL", "PocketQuestion", "questions", "verify"]
