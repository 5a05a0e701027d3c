"""Look at a head: on the test questions of its own collection, or on all of another one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from arrol_train.heads.collect import CollectionManifest
from arrol_train.heads.dataset import open_collected
from arrol_train.heads.figures import plot_by_position
from arrol_train.heads.knowledge import Inspection, curve_positions, inspect_traces
from arrol_train.heads.make import EVALUATION_FILE
from arrol_tts.errors import HeadError
from arrol_tts.files import write_json
from arrol_tts.head import QualityHead
from arrol_tts.head_config import resolve_head


def inspect_head(head: str, collection: Path | None = None, out: Path | None = None) -> tuple[Inspection, Path]:
    """Inspect, and write ``inspection.json`` and ``auroc_by_position.png``.

    Args:
        head: folder or hub id.
        collection: of another task or model; by default the head's own, of which only the test questions count.
        out: folder of the figures.

    Returns:
        What was found, and the folder it was written into.

    Raises:
        InputError: when there is no head, no collection, or one of another hidden size.
    """
    folder = resolve_head(head)
    loaded = QualityHead.from_pretrained(folder)
    asked = None
    if collection is None:
        collection, asked = _own_test(folder)
    loaded.config.check_model(hidden_size=CollectionManifest.read(collection).hidden_size, model=str(collection))
    with open_collected(collection) as collected:
        config = loaded.config
        if config.pooling == "last":  # on others it was not trained, and their vectors may not have been kept
            config = replace(config, positions=collected.manifest.positions)
        curve = curve_positions(collected, config)
        groups = collected.scored(loaded, frozenset(collected.question_ids) if asked is None else asked, curve)
        found = inspect_traces(groups, sorted(config.positions), config.voting.get("quality"), curve=curve)
    out = out or (folder / "inspection" if asked is not None else collection / "inspection")
    out.mkdir(parents=True, exist_ok=True)
    record = {"head": str(head), "collection": str(collection), **found.to_dict()}
    write_json(out / "inspection.json", record)
    plot_by_position(found, out / "auroc_by_position.png")
    return found, out


def _own_test(folder: Path) -> tuple[Path, frozenset[str]]:
    try:
        evaluation = json.loads((folder / EVALUATION_FILE).read_text())
        collection = Path(evaluation["collection"])
        asked = frozenset(evaluation["split"]["test"])
    except (OSError, ValueError, KeyError):
        raise HeadError(f"{folder} does not say what it was made from: name samples with --collection") from None
    if not collection.is_dir():
        raise HeadError(f"{collection}, which this head was made from, is not there: name it with --collection")
    return collection, asked
