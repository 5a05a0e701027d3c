"""What a quality head says about itself: its config file, and where heads are found. Needs no torch."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from arrol_tts.errors import HeadError, InputError
from arrol_tts.files import file_sha256

if TYPE_CHECKING:
    from arrol_tts.answers import EqualityName, PercentSign

CONFIG_FILE = "head_config.json"
WEIGHTS_FILE = "head.safetensors"
ACCURACY_TOKENS_FILE = "accuracy_tokens.json"
"""Beside a head for which it was measured: accuracy of votes against the tokens they cost, for people to see."""
FORMAT_VERSION = 2
"""1 had no ``pooling`` and no ``stride``: its heads read one state at a time, as they still do."""

Pooling = Literal["last", "mean", "gated", "steps"]
"""How the tokens of a trace make one score.

``last``: by the last one's state alone. ``mean``: by the mean of what the head reads from each state so far.
``gated``: by their mean weighted by a gate that the head reads from the same state. ``steps``: by the mean of the
probabilities that it reads at the ends of the trace's steps so far; 0.5 before the first.
"""

Activation = Literal["gelu", "relu"]
"""Between the layers of a head's MLP."""


@dataclass
class QualityHeadConfig:
    """What a head is and what it is for; saved as JSON beside the weights.

    Attributes:
        base_model: path or hub id of the language model whose states the head reads. A relative
            path that starts with ``./`` or ``../`` is relative to the head's folder.
        hidden_size: width of the hidden states.
        inner_size: width of the MLP; 0 for a linear head, which only pooling ones can be.
        pooling: how the tokens of a trace make one score, see `Pooling`.
        stride: of the tokens that are pooled: every stride-th row from the prompt's end on.
        pool_after: for ``steps``, the tokens that end a step.
        activation: between the layers of the MLP.
        positions: detection positions in generated tokens, the first being the default of ``solve``; a head whose
            pooling is ``last`` was trained at these.
        calibration: ``[a, b]``: the probability is ``sigmoid(a * logit + b)`` (Platt scaling).
        keep: share of a group to keep at the first detection position, the default of ``solve``.
        sampling: the sampling the head was trained on (``temperature``, ``max_tokens``, ``stop``), the default
            of ``solve``.
        engine: options that suit the base model in every engine (``top_k`` of the token confidence).
        voting: options of the voting methods that suit the base model, ``{method: options}``.
        equality: what makes two answers one in the questions it is meant for, a name that `arrol_tts.vote` takes.
        percent: what a per cent sign means there, ``fraction`` or ``unit``.
        prompt: chat messages that put a question to the base model, ``{"role", "content"}``, the last with
            ``{question}``; without any, questions are asked as they are.
        chat: whether they go through the model's chat template, see `arrol_tts.prompts.Prompt`.
        chat_template_kwargs: variables of that template, such as ``{"enable_thinking": False}``.
        metrics: how the head did on held-out questions; for people to read.
        base_revision: which weights the base model had (see ``arrol_tts.revision``), when known.
        format_version: of these files.
    """

    base_model: str
    hidden_size: int
    inner_size: int = 128
    pooling: Pooling = "last"
    stride: int = 1
    pool_after: list[int] = field(default_factory=list)
    activation: Activation = "gelu"
    positions: list[int] = field(default_factory=lambda: [512])
    calibration: list[float] = field(default_factory=lambda: [1.0, 0.0])
    keep: float = 0.5
    sampling: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    voting: dict[str, dict[str, Any]] = field(default_factory=dict)
    equality: EqualityName = "math"
    percent: PercentSign = "fraction"
    prompt: list[dict[str, str]] = field(default_factory=list)
    chat: bool = True
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    base_revision: str | None = None
    format_version: int = field(init=False)

    def __post_init__(self) -> None:
        first = self.pooling == "last" and self.activation == "gelu"
        self.format_version = 1 if first else FORMAT_VERSION  # the earliest that knows it
        for name, known in (("pooling", get_args(Pooling)), ("activation", get_args(Activation))):
            if getattr(self, name) not in known:
                raise HeadError(
                    f"{CONFIG_FILE}: {name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )
        for name in ("hidden_size", "inner_size", "stride"):
            value = getattr(self, name)
            least = 0 if name == "inner_size" and self.pooling != "last" else 1
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1 << 20:
                wanted = "a positive whole number" if least else "a whole number, 0 for a linear head"
                raise HeadError(f"{CONFIG_FILE}: {name} is {value!r}; it must be {wanted}")
        if self.pooling == "last" and self.stride != 1:
            raise HeadError(f"{CONFIG_FILE}: stride is {self.stride}; a head that pools nothing reads every token")
        if self.pooling == "steps" and self.stride != 1:
            raise HeadError(
                f"{CONFIG_FILE}: stride is {self.stride}; a head of steps reads their ends, all of them"
            )
        tokens = self.pool_after
        if not isinstance(tokens, list) or not all(isinstance(token, int) and token >= 0 for token in tokens):
            raise HeadError(f"{CONFIG_FILE}: pool_after is {tokens!r:.60}; it must list token ids")
        if bool(tokens) != (self.pooling == "steps"):
            raise HeadError(
                f"{CONFIG_FILE}: pool_after names the tokens that end a step, for pooling 'steps' alone"
            )
        if not self.positions or not all(isinstance(p, int) and p >= 1 for p in self.positions):
            raise HeadError(f"{CONFIG_FILE}: positions is {self.positions!r}; it must list token counts >= 1")
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)) or not 0 < self.keep <= 1:
            raise HeadError(f"{CONFIG_FILE}: keep is {self.keep!r}; it must be in (0, 1]")
        if len(self.calibration) != 2:
            raise HeadError(f"{CONFIG_FILE}: calibration is {self.calibration!r}; it must be [a, b]")
        if (self.equality, self.percent) != ("math", "fraction"):
            from arrol_tts.answers import key_function

            try:
                key_function(self.equality, self.percent)
            except InputError as error:
                raise HeadError(f"{CONFIG_FILE}: {error}") from None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QualityHeadConfig:
        """Read a saved config, ignoring keys that later versions may add.

        Raises:
            HeadError: when keys are missing or a newer format is needed.
        """
        if int(data.get("format_version", 1)) > FORMAT_VERSION:
            raise HeadError(
                f"this head was saved in format {data['format_version']}, this version reads up to "
                f"{FORMAT_VERSION}: upgrade arrol"
            )
        known = {f.name for f in fields(cls) if f.init}
        try:
            return cls(**{k: v for k, v in data.items() if k in known})
        except TypeError as error:
            raise HeadError(f"{CONFIG_FILE} is incomplete: {error}") from None

    def scoring(self) -> dict[str, Any]:
        """What a score depends on beside the weights: another head's has the same weights and other scores."""
        names = ("inner_size", "pooling", "stride", "pool_after", "activation", "calibration")
        return {name: getattr(self, name) for name in names}

    def check_model(self, *, hidden_size: int, model: str | None = None) -> None:
        """Refuse a model whose states this head cannot read.

        Raises:
            HeadError: when the widths differ.
        """
        if hidden_size != self.hidden_size:
            raise HeadError(
                f"this head reads hidden states of width {self.hidden_size} (it was trained for "
                f"{self.base_model}), but the model {model or ''} has width {hidden_size}: use a head "
                "trained for this model, or the model the head names"
            )

    def check_revision(self) -> None:
        """Refuse a folder whose weights have changed since the head was trained; warn of another hub commit.

        Raises:
            HeadError: when a folder's weights have changed; saying how to use them all the same.
        """
        from arrol_tts.revision import model_revision

        if self.base_revision is None:
            return
        try:
            found = model_revision(self.base_model)
        except OSError:  # there is no such model: who loads it says so better
            return
        if found == self.base_revision:
            return
        message = (
            f"the model {self.base_model} has changed since this head was trained (revision {found}, not "
            f"{self.base_revision}): train a head for it, or pass model={self.base_model!r} to use it with "
            "this head all the same"
        )
        if self.base_revision.startswith("sha256:"):
            raise HeadError(message)
        # A commit may have changed the weights or only the model's card.
        warnings.warn(message, stacklevel=3)


def resolve_head(path_or_id: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The local folder of a head, downloaded when it is a hub id.

    Raises:
        HeadError: when there is no such head.
    """
    from arrol_tts.pocket import POCKET_HEAD

    if str(path_or_id) == "pocket":
        return POCKET_HEAD
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    name = str(path_or_id)
    if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise HeadError(f"there is no quality head at {name!r}: give a folder, a hub id (owner/name) or 'pocket'")
    from huggingface_hub import snapshot_download

    try:
        files = [CONFIG_FILE, WEIGHTS_FILE]
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except Exception as error:
        raise HeadError(f"no quality head could be loaded from the hub id {name!r}: {error}") from error


def read_head_config(folder: Path) -> QualityHeadConfig:
    """The config of a head in a local folder, its relative ``base_model`` made absolute.

    Raises:
        HeadError: when it is missing or malformed.
    """
    path = folder / CONFIG_FILE
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise HeadError(f"{folder} holds no quality head: {CONFIG_FILE} is missing") from None
    except ValueError as error:
        raise HeadError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise HeadError(f"{path} must hold a JSON object")
    config = QualityHeadConfig.from_dict(data)
    if config.base_model.startswith(("./", "../")):
        config.base_model = str((folder / config.base_model).resolve())
    return config


def head_sha256(folder: Path) -> str:
    """SHA-256 of a head's weights: by it and the config a server, a client and a results folder know a head."""
    return file_sha256(folder / WEIGHTS_FILE)
