"""Engines are slow to load: one of each serves the whole run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from arrol_tts.engine.transformers_engine import TransformersEngine
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from arrol_tts.head import QualityHead

TOP_K = 5

# Before torch is imported, here and in what tests start: with models so small, threads only wait on each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is slow at random: time limits are tested where they are promised, not per example.
settings.register_profile("arrol", deadline=None, max_examples=50)
settings.load_profile("arrol")


@pytest.fixture(scope="session")
def pocket_head() -> QualityHead:
    from arrol_tts.head import QualityHead

    return QualityHead.from_pretrained("pocket")


@pytest.fixture(scope="session")
def heads(pocket_head: QualityHead) -> dict[str, QualityHead]:
    """The pocket head, which is the default one, and a head of every kind by name."""
    from tests.heads import KINDS, head_of_kind

    return {"": pocket_head} | {kind: head_of_kind(kind, pocket_head) for kind in KINDS}


def load_pocket(heads: dict[str, QualityHead] | None = None) -> VLLMEngine:
    """The pocket model in real vLLM, on the CPU, with fewer slots than most tests have requests."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: pip install 'arrol[cpu]'")
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL

    return VLLMEngine(
        POCKET_MODEL,
        head=heads or POCKET_HEAD,
        top_k=TOP_K,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=24,
    )


@pytest.fixture(scope="session")
def vllm_engine(heads: dict[str, QualityHead]) -> Iterator[VLLMEngine]:
    """One engine for all tests; who changes its weights puts them back."""
    engine = load_pocket(heads)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def transformers_engine(heads: dict[str, QualityHead]) -> TransformersEngine:
    from arrol_tts.engine.transformers_engine import TransformersEngine
    from arrol_tts.pocket import POCKET_MODEL

    return TransformersEngine(POCKET_MODEL, head=heads, top_k=TOP_K)
