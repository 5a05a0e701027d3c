"""What the engine tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from arrol_tts import WeightedVoter
from arrol_tts.head_config import read_head_config
from arrol_tts.pocket import POCKET_HEAD
from tests.conftest import TOP_K

if TYPE_CHECKING:
    from arrol_tts.head import QualityHead
    from tests.arrol_tts.engine.parity import Reference


@pytest.fixture(scope="session")
def reference(heads: dict[str, QualityHead]) -> Reference:
    """The pocket model in plain transformers: what every engine is compared with."""
    from tests.arrol_tts.engine.parity import Reference

    return Reference(heads, TOP_K)


@pytest.fixture(params=["vllm_engine", "transformers_engine"], scope="module")
def engine(request: pytest.FixtureRequest) -> Any:
    """Each local engine in turn, for tests of what both must do alike."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def voter(engine: Any) -> WeightedVoter:
    """A voter on it, with the built-in head's options."""
    return WeightedVoter(engine, config=read_head_config(POCKET_HEAD))
