"""Where things lie, for tests that read files of the checkout or beside it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED_DATA = Path(os.environ.get("ARROL_SHARED_DATA", ROOT / ".." / "shared" / "data"))
"""Published problems and recorded samples, which the project does not contain; tests of them skip without."""
