"""What the engine tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import TOP_K

if TYPE_CHECKING:
    from arrol_tts.head import QualityHead
    from tests.arrol_tts.engine.parity import Reference


@pytest.fixture(scope="session")
def reference(heads: dict[str, QualityHead]) -> Reference:
    """The pocket model in plain transformers: what every engine is compared with."""
    from tests.arrol_tts.engine.parity import Reference

    return Reference(heads, TOP_K)
