"""What a run is to do: from the command line, from a recipe, or from both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arrol_tts.answers import EqualityName, PercentSign, key_function
from arrol_tts.engine.load import ENGINE_NAMES, chosen_engine, load_engine
from arrol_tts.engine.request import SAMPLING_PARAMETERS, Sampling
from arrol_tts.errors import InputError
from arrol_tts.head_config import QualityHeadConfig, read_head_config, resolve_head
from arrol_tts.prompts import Prompt, check_system
from arrol_tts.voter import WeightedVoter
from arrol_tts.waves import Waves

from .. import benchmarks
from ..benchmarks import Benchmark
from .passes import BY_SCORE, STOPPING

RECIPES = Path(__file__).parents[1] / "recipes"


class SettingsError(InputError):
    """RunSettings that cannot work; the message says what to change."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """A run.

    Attributes:
        benchmarks: names, as ``evals.benchmarks.load`` takes them.
        model: path, hub id or served name of the language model; by default the one the head names.
        head: folder or hub id of a quality head; None votes without one.
        n: traces per question.
        seeds: how many; ``seed`` is the first of them.
        keep: share of a question's traces that the pruned pass keeps.
        sampling: from what samples are drawn, by the names of ``SAMPLING_PARAMETERS``; what is left out is the
            head's, else the default of ``Sampling``.
        prompt: style, see ``evals.sampling.prompt_style``.
        system: system prompt, in place of the head's own.
        stopping: passes with early stopping besides the full one; None: ``pruned`` where there is a head.
        start, step, certainty: of the pass in waves, see ``arrol_tts.Waves``.
        limit: questions of each benchmark; None is all.
        equality, percent: what makes two answers one, see ``arrol_tts.vote``; None: as each benchmark says.
        engine: auto, vllm or transformers.
        servers: base URLs instead of an engine of our own.
        engine_options: passed to the engine, such as ``tensor_parallel_size``.
        notes: of a recipe, for people to read.
    """

    benchmarks: tuple[str, ...] = ()
    model: str | None = None
    head: str | None = None
    n: int = 32
    seeds: int = 1
    seed: int = 0
    keep: float = 0.5
    sampling: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = "auto"
    system: str | None = None
    stopping: tuple[str, ...] | None = None
    start: int = 4
    step: int = 2
    certainty: float = 0.95
    limit: int | None = None
    equality: EqualityName | None = None
    percent: PercentSign | None = None
    engine: str = "auto"
    servers: tuple[str, ...] = ()
    engine_options: dict[str, Any] = field(default_factory=dict)
    notes: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise SettingsError(f"keep is {self.keep:g}; it must be in (0, 1]")
        for name in self.stopping or ():
            if name not in STOPPING:
                raise SettingsError(f"there is no stopping pass {name!r}; choose from {', '.join(STOPPING)}")
        self.waves.check(self.n if "waves" in (self.stopping or ()) else self.start)
        if self.engine not in ENGINE_NAMES:
            raise SettingsError(f"engine is {self.engine!r}; it must be 'auto', 'vllm' or 'transformers'")
        if self.system is not None:
            check_system(self.system)
        key_function(self.equality or "math", self.percent or "fraction")

    @property
    def waves(self) -> Waves:
        """Of the pass in waves.

        Raises:
            InputError: for values out of range.
        """
        return Waves(self.start, self.step, self.certainty)

    @property
    def passes(self) -> tuple[str, ...]:
        """With early stopping, besides the full one."""
        return (("pruned",) if self.head else ()) if self.stopping is None else self.stopping

    def load_benchmarks(self, data: dict[str, Path], *, partial: bool = False) -> list[Benchmark]:
        """The problems.

        Args:
            data: local copies by benchmark.
            partial: accept incomplete copies.

        Raises:
            SettingsError: without a benchmark, or for data of a benchmark that is not asked for.
            BenchmarkError: when problems cannot be read.
        """
        if not self.benchmarks:
            raise SettingsError(f"name a benchmark; known: {', '.join(benchmarks.NAMES)}")
        if unused := [name for name in data if name not in self.benchmarks]:
            raise SettingsError(
                f"--data names {unused[0]!r}, which this run does not ask: {', '.join(self.benchmarks)}"
            )
        return [
            benchmarks.load(
                name,
                self.limit,
                data=data.get(name),
                partial=partial,
                equality=self.equality,
                percent=self.percent,
            )
            for name in dict.fromkeys(self.benchmarks)
        ]

    def complete(self, loaded: list[Benchmark]) -> RunSettings:
        """The same with the head, passes and sampling that follow from the rest spelled out.

        Raises:
            SettingsError: when there is no model, or a pass needs a head and there is none.
            HeadError: when the head cannot be read.
        """
        head = self.head or (loaded[0].head if len(loaded) == 1 and self.model is None else None)
        stopping = dataclasses.replace(self, head=head).passes
        if head is None and not self.model and not self.servers:
            raise SettingsError("name a model with --model, a head with --head, or both")
        if head is None and (by_score := [name for name in stopping if name in BY_SCORE]):
            raise SettingsError(
                f"the pass {by_score[0]!r} needs a quality head: name one with --head, or leave it out"
            )
        completed = dataclasses.replace(self, head=head, stopping=stopping)
        drawn = completed.drawn_from()
        # All of it: what is at its default here must not be the head's own when the voter completes a call.
        return dataclasses.replace(
            completed, sampling={name: getattr(drawn, name) for name in SAMPLING_PARAMETERS}
        )

    def drawn_from(self) -> Sampling:
        """How samples are drawn: what is asked, else the head's, else the defaults.

        The head's stop texts are left to its prompt, which is not always the one that is used.

        Raises:
            InputError: for values out of range.
            HeadError: when the head cannot be read.
        """
        config = self.head_config()
        own = {name: value for name, value in (config.sampling if config else {}).items() if name != "stop"}
        return Sampling(n=self.n, **own | dict(self.sampling))

    def head_config(self) -> QualityHeadConfig | None:
        """The head's config, None without a head.

        Raises:
            HeadError: when the head cannot be read.
        """
        return None if self.head is None else read_head_config(resolve_head(self.head))

    def model_name(self) -> str:
        """Path or hub id of the language model; empty when it is a server's to say.

        Raises:
            HeadError: when the head that would name it cannot be read.
        """
        config = None if self.model else self.head_config()
        return self.model or (config.base_model if config else "")

    def tokenizer(self) -> Any | None:
        """The model's tokenizer; None when it is a server's.

        Raises:
            SettingsError: when there is no such model.
        """
        if self.servers:
            return None
        from transformers import AutoTokenizer

        model = self.model_name()
        try:
            return AutoTokenizer.from_pretrained(model)
        except OSError as error:
            raise SettingsError(f"there is no language model at {model!r}: {error}") from None

    @property
    def all_seeds(self) -> range:
        """``seeds`` of them, from ``seed`` on."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def engine_name(self) -> str:
        """``server``, ``vllm`` or ``transformers``, as it will be."""
        if self.servers:
            return "server"
        return chosen_engine(self.engine)

    @property
    def knows_self_certainty(self) -> bool:
        """Whether the engine can record it: all but servers that may lack the plug-in, which a head asks for."""
        return not self.servers or self.head is not None

    def load_voter(self, prompt: Prompt | None = None) -> WeightedVoter:
        """A voter for completed settings; the language model loads when its engine is first asked for.

        Args:
            prompt: how questions are put to the model; None: as the head says.

        Raises:
            HeadError: when the head does not fit the model.
            ServerError: when no server answers.
        """
        if self.head is not None:
            return WeightedVoter.from_pretrained(
                self.head,
                model=self.model,
                engine=self.engine,  # type: ignore[arg-type]
                server=self.servers or None,
                prompt=prompt,
                **self.engine_options,
            )
        engine = load_engine(
            self.model,
            engine=self.engine,  # type: ignore[arg-type]
            server=self.servers or None,
            **self.engine_options,
        )
        return WeightedVoter(engine, method="majority", prompt=prompt)


def read_recipe(name_or_path: str) -> RunSettings:
    """RunSettings from a recipe: one of ``recipe_names()``, or a YAML file with fields of ``RunSettings``.

    Parameters of the sampling stand beside the other fields there.

    Raises:
        SettingsError: when there is no such recipe, or it has unknown fields.
    """
    import yaml

    path = Path(name_or_path) if name_or_path.endswith((".yaml", ".yml")) else RECIPES / f"{name_or_path}.yaml"
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise SettingsError(
            f"there is no recipe {name_or_path!r}; known: {', '.join(recipe_names())}, or name a YAML file"
        ) from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from None
    known = {field.name for field in dataclasses.fields(RunSettings)} - {"sampling"} | {*SAMPLING_PARAMETERS}
    if not isinstance(data, dict) or (unknown := sorted(set(data) - known)):
        what = f"unknown fields {', '.join(unknown)}" if isinstance(data, dict) else "no mapping"
        raise SettingsError(f"{path} has {what}; known fields: {', '.join(sorted(known))}")
    sampling = {name: data.pop(name) for name in SAMPLING_PARAMETERS if name in data}
    lists = {
        name: tuple(data[name]) for name in ("benchmarks", "stopping", "servers") if data.get(name) is not None
    }
    return RunSettings(**{**data, **lists}, sampling=sampling)


def recipe_names() -> list[str]:
    """Recipes that come with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))
