"""A real model on a real benchmark: ``python -m evals.bench.real``.

Qwen2.5-Coder-0.5B-Instruct (``python -m evals.qwen_coder``) on GSM8K's questions of at most three calculations,
few-shot. Two heads learn from the model's samples of training questions: one of the default design, and one that
reads the last state at a few positions, as heads of format 1 do. Whatever is chosen is chosen on those questions:
sizes, detection position, windows and powers of the votes, the combined vote. The test questions are looked at
once. Easy problems of MATH-500 are then asked with the same head: does it carry over?

Sampling is ``arrol-train collect`` into ``--out``, and goes on where it was cut. Fewer questions may be asked of
the same files, the first ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from arrol_train.heads.choose import Split, split_questions
from arrol_train.heads.collect import TRACES_FOLDER
from arrol_train.heads.dataset import Collected, Group, open_collected
from arrol_train.heads.make import COMBINED_FILE, HeadOptions, fit_head
from arrol_tts.combined import CombinedVoter
from arrol_tts.errors import InputError
from arrol_tts.files import write_json
from arrol_tts.head import QualityHead
from arrol_tts.replay import replay
from arrol_tts.stopping import KeepShare
from arrol_tts.store import TraceStore
from arrol_tts.voter import WeightedVoter

from ..qwen_coder import FOLDER
from ..real_questions import write_questions
from ..reporting import replays
from . import made_once, write_result
from .head import ablation, arrol_train, engine_options
from .real_figures import (
    FINISH,
    ChosenVote,
    auroc_figures,
    pruning_figures,
    right_of,
    sample_figures,
    samples_of,
    scores_at,
    vote_figures,
    way_figures,
)

QUESTIONS = {"train": 320, "test": 240, "math": 50}
"""In the files; the first ones are asked."""
ASKED = {"train": 300, "test": 200, "math": 50}
SAMPLES = {"train": 16, "test": 16, "math": 16}
SAMPLING = ["--plain", "--temperature", "0.7", "--max-tokens", "200", "--stop", "\\n\\n", "--stop", "Question:"]
ENGINE: dict[str, Any] = {"dtype": "bfloat16", "block_size": 32, "max_num_seqs": 64, "max_model_len": 2048}
POSITIONS = (16, 32)
"""To detect at: a sixth and a third of the mean trace."""
KEEP = 0.5
OPTIONS = HeadOptions(positions=POSITIONS, keep=KEEP, sizes=(0, 32), weight_decays=(0.05,))
V1_OPTIONS = HeadOptions(pooling="last", keep=KEEP)
"""Format 1's design, with all that its command tries."""
CURVE = (8, 16, 24, 32, 48, 64, 96, 128)
POWERS = (0.3, 0.5, 1.0, 2.0)
"""Of the Borda vote by self-certainty."""
DEEPCONF = ("deepconf", "deepconf-lowest", "deepconf-tail")
SEED = 0
BENCHMARK = "GSM8K, questions of at most three calculations"
ABLATION_SIZE = 32
ABLATION_FOLDS = 2
ABLATION = ("all", "last_state_alone", "linear_probe", "stride_4", "a_quarter_of_the_questions")
"""Heads on training questions, of which two fifths test, see `evals.bench.head.ablation`."""
TIMES_FILE = "sampling.jsonl"
CHOSEN_FILE = "chosen.json"


def main(
    out: Annotated[Path, typer.Option(help="folder of questions, samples and heads")] = Path("runs/real"),
    model: Annotated[Path, typer.Option(help="the model's folder")] = FOLDER,
    train: Annotated[Path | None, typer.Option(help="GSM8K's training part, by default the hub's")] = None,
    test: Annotated[Path | None, typer.Option(help="GSM8K's test part, by default the hub's")] = None,
    math: Annotated[Path | None, typer.Option(help="MATH-500, by default the hub's")] = None,
    train_questions: Annotated[int, typer.Option(help="asked to train on")] = ASKED["train"],
    test_questions: Annotated[int, typer.Option(help="asked to test on")] = ASKED["test"],
    math_questions: Annotated[int, typer.Option(help="asked of MATH-500; 0: none")] = ASKED["math"],
) -> None:
    """Sample, train, test, and write evals/results/real.json."""
    counts = {f"{name}_count": count for name, count in QUESTIONS.items()}
    write_questions(out, train=train, test=test, math=math, **counts)
    asked = {"train": train_questions, "test": test_questions, "math": math_questions}
    for name, count in asked.items():
        if count:
            sample(name, count, out, model)
    with open_collected(out / "train") as collected:
        questions = first_questions(collected, asked["train"], SAMPLES["train"])
        made = made_of(collected, questions, out)
        figures: dict[str, Any] = {
            "model": "Qwen2.5-Coder-0.5B-Instruct, weights of 4 to 8 bits, computed in bfloat16",
            "benchmark": BENCHMARK,
            "train": sample_figures(collected.groups_of(questions)),
            "detection_position": made.position,
            "keep": KEEP,
            "chosen": {
                **made.chosen,
                "voting": {name: head.config.voting["quality"] for name, head in made.heads.items()},
                "inner_size": {name: head.config.inner_size for name, head in made.heads.items()},
            },
        }
    path = out / "ablation.json"
    settings = {
        "tokens": tokens_of(out / "train"),
        **{"size": ABLATION_SIZE, "heads": ABLATION, "folds": ABLATION_FOLDS},
    }

    def ablate() -> None:
        write_json(path, ablation(out / "train", ABLATION_SIZE, ABLATION, ABLATION_FOLDS)["real_ablation"])

    made_once(path, settings, ablate)
    figures["ablation"] = json.loads(path.read_text())
    with open_collected(out / "test") as collected:
        figures |= held_out_figures(made, collected, first_questions(collected, asked["test"], SAMPLES["test"]))
    if asked["math"]:
        with open_collected(out / "math") as collected:
            questions = first_questions(collected, asked["math"], SAMPLES["math"])
            figures["math500_easy"] = transfer_figures(made, collected, questions)
    figures["sampling"] = sampling_times(out)
    write_result("real", figures, [SEED])
    typer.echo(json.dumps({k: v for k, v in figures.items() if isinstance(v, int | float)}, indent=2))


# --- samples --------------------------------------------------------------------------------------


def sample(name: str, count: int, out: Path, model: Path) -> None:
    """Collect what is missing of a file's first questions, and note how long it took."""
    folder = out / name
    before, began = tokens_of(folder), time.monotonic()
    arrol_train(
        *["collect", "--model", model, "--data", out / f"{name}.jsonl", "--prompt", out / "prompt.txt"],
        *["--out", folder, "--n", SAMPLES[name], "--limit", count, "--stride", 1, "--unseeded"],
        *[*SAMPLING, *engine_options(ENGINE)],
    )
    if tokens := tokens_of(folder) - before:
        with open(out / TIMES_FILE, "a") as file:
            file.write(json.dumps({"part": name, "tokens": tokens, "seconds": time.monotonic() - began}) + "\n")


def tokens_of(folder: Path) -> int:
    """Generated tokens that a collection holds."""
    fields = ("question_id", "sample_id", "num_tokens")
    return sum(trace.num_tokens for trace in TraceStore(folder / TRACES_FOLDER).read(fields))


def sampling_times(out: Path) -> dict[str, float]:
    """Tokens and seconds of the calls that were not cut off."""
    path = out / TIMES_FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    tokens, seconds = (sum(row[key] for row in rows) for key in ("tokens", "seconds"))
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds} if rows else {}


def first_questions(collected: Collected, count: int, n: int) -> frozenset[str]:
    """Ids of the first questions of a collection.

    Raises:
        InputError: when samples of one are missing.
    """
    names = frozenset(f"row-{i}" for i in range(1, count + 1))
    whole = {group[0].question_id for group in collected.groups_of(names) if len(group) == n}
    if missing := len(names - whole):
        raise InputError(f"{missing} of {count} questions have no {n} samples yet: go on sampling, or ask fewer")
    return names


# --- what is made and chosen on training questions ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Made:
    """Two heads, and what was chosen with them.

    Attributes:
        heads: ``head``, of the default design, and ``head_v1``.
        combined: the fitted combined vote.
        chosen: further options, JSON-ready: of the baselines' votes, and of ways to ask for fewer traces.
    """

    heads: Mapping[str, QualityHead]
    combined: CombinedVoter
    chosen: Mapping[str, Any]

    @property
    def position(self) -> int:
        """Where the head prunes."""
        return self.heads["head"].config.positions[0]

    @property
    def voter(self) -> WeightedVoter:
        """Votes with the head's options; it has no engine."""
        return WeightedVoter(config=self.heads["head"].config)

    @property
    def votes(self) -> dict[str, ChosenVote]:
        """Every way to vote by its name, baselines first."""
        quality = {
            name: ChosenVote("quality", head.config.voting["quality"], name) for name, head in self.heads.items()
        }
        return {
            "majority": ChosenVote("majority", {}),
            **{name: ChosenVote(**self.chosen[name]) for name in ("deepconf", "self_certainty")},
            "head_v1": quality["head_v1"],
            "head": quality["head"],
            "combined": ChosenVote(self.combined, {}),
        }

    @property
    def asking(self) -> list[replays.Way]:
        """Every way to ask for fewer traces, at the setting that was chosen."""
        every = [way for settings in replays.ways(self.voter, SAMPLES["train"]).values() for way in settings]
        return [way for way in every if way.setting == self.chosen["asking"][way.name]]

    def scored(self, collected: Collected, questions: frozenset[str]) -> dict[str, list[Group]]:
        """The traces with the scores of each head, wherever they are asked for."""
        asked = {"head": sorted({*CURVE, *POSITIONS}), "head_v1": self.heads["head_v1"].config.positions}
        return {name: collected.scored(head, questions, asked[name]) for name, head in self.heads.items()}

    def in_use(self, groups: Mapping[str, list[Group]]) -> dict[str, list[Group]]:
        """The traces with the scores that votes see."""
        return {name: scores_at(groups[name], head.config.positions[0]) for name, head in self.heads.items()}

    def save(self, out: Path) -> None:
        """Write folders that any command takes for heads, and what was chosen beside them."""
        for name, head in self.heads.items():
            head.save_pretrained(out / name)
        write_json(out / "head" / COMBINED_FILE, self.combined.to_dict())
        write_json(out / CHOSEN_FILE, self.chosen)

    @classmethod
    def load(cls, out: Path) -> Made:
        """What `save` wrote."""
        heads = {name: QualityHead.from_pretrained(out / name) for name in ("head", "head_v1")}
        combined = CombinedVoter.from_dict(json.loads((out / "head" / COMBINED_FILE).read_text()))
        return cls(heads, combined, json.loads((out / CHOSEN_FILE).read_text()))


def made_of(collected: Collected, questions: frozenset[str], out: Path) -> Made:
    """The heads in a folder if they were made of the same, else new ones, which are written there."""
    settings = {
        "collection": asdict(collected.manifest),
        "questions": len(questions),
        "tokens": sum(trace.num_tokens for group in collected.groups_of(questions) for trace in group),
        "options": {"head": asdict(OPTIONS), "head_v1": asdict(V1_OPTIONS), "seed": SEED},
        "votes": {"powers": POWERS, "deepconf": DEEPCONF, "windows": replays.WINDOWS},
    }
    made_once(out / CHOSEN_FILE, settings, lambda: make(collected, questions).save(out))
    return Made.load(out)


def make(collected: Collected, questions: frozenset[str]) -> Made:
    """Train both heads, and choose how every method votes, on the same questions."""
    parts = split_questions(sorted(questions), seed=SEED)
    split = Split(parts.train | parts.test, parts.validation, frozenset())
    found = {
        name: fit_head(collected, split, options)
        for name, options in (
            ("head", OPTIONS),
            ("head_v1", V1_OPTIONS),
        )
    }
    fitted, known = found["head"], collected.groups_of(questions)
    config = fitted.chosen.head.config
    voter, samples = WeightedVoter(config=config), samples_of(fitted.held_out)
    assert fitted.combined is not None  # confidences are recorded
    chosen = {
        "questions": len(questions),
        "deepconf": _best(known, [ChosenVote(method, config.voting[method]) for method in DEEPCONF]),
        "self_certainty": _best(known, [ChosenVote("self-certainty", {"power": power}) for power in POWERS]),
        "asking": {
            name: replays.cheapest(settings, [samples], voter).setting
            for name, settings in replays.ways(voter, SAMPLES["train"], replays.windows_below(samples)).items()
        },
        "candidates": [asdict(candidate) for candidate in fitted.chosen.candidates],
    }
    return Made({name: one.chosen.head for name, one in found.items()}, fitted.combined, chosen)


def _best(groups: Sequence[Group], ways: Sequence[ChosenVote]) -> dict[str, Any]:
    """The first of those with the most right votes."""
    best = max(ways, key=lambda way: right_of(way.votes(groups)).mean())
    return {"method": best.method, "options": dict(best.options)}


# --- what is tested -------------------------------------------------------------------------------


def held_out_figures(made: Made, collected: Collected, questions: frozenset[str]) -> dict[str, Any]:
    """Everything that is said of the test questions."""
    groups, ways = made.scored(collected, questions), made.votes
    used = made.in_use(groups)
    votes = {name: way.votes(used[way.head]) for name, way in ways.items()}
    kept = [replay(group, KeepShare(made.position, KEEP)) for group in used["head"]]
    votes["head_pruned"] = ways["head"].votes(kept)
    by_position = auroc_by_position(made, groups, sorted({*CURVE, *POSITIONS}))
    return {
        **sample_figures(used["head"]),
        **vote_figures(votes),
        **{key: value for key, value in by_position[FINISH].items() if key.startswith("auroc_within")},
        "auroc_by_position": by_position,
        "pruning": pruning_figures(groups["head"], ways, POSITIONS),
        "asking": way_figures(used["head"], made.voter, made.asking, ways),
    }


def transfer_figures(made: Made, collected: Collected, questions: frozenset[str]) -> dict[str, Any]:
    """Votes and AUROC on another benchmark, with everything as it was chosen on the first."""
    groups = made.scored(collected, questions)
    used = made.in_use(groups)
    return {
        **sample_figures(used["head"]),
        **vote_figures({name: way.votes(used[way.head]) for name, way in made.votes.items()}),
        "auroc_by_position": auroc_by_position(made, groups, POSITIONS),
    }


def auroc_by_position(
    made: Made, groups: Mapping[str, list[Group]], positions: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """AUROC within questions; the head of format 1 where it was trained."""
    return auroc_figures(groups, positions, {"head_v1": made.heads["head_v1"].config.positions})


if __name__ == "__main__":
    typer.run(main)
