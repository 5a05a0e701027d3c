"""The one place where engines are made: for voters, evaluations, training and the demo alike."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from arrol_tts.engine.handover import named_heads
from arrol_tts.errors import InputError, MissingPackageError
from arrol_tts.head_config import QualityHeadConfig, read_head_config, resolve_head

if TYPE_CHECKING:
    from arrol_tts.engine.base import Engine
    from arrol_tts.engine.handover import Heads

EngineName = Literal["auto", "vllm", "transformers"]
ENGINE_NAMES: tuple[str, ...] = get_args(EngineName)


def load_engine(
    model: str | Path | None = None,
    *,
    head: Heads = None,
    engine: EngineName = "auto",
    server: str | Sequence[str] | None = None,
    **options: Any,
) -> Engine:
    """Load a language model, or connect to servers that have one.

    Args:
        model: path or hub id of the language model, by default the one that the head names; with ``server``, the
            name they serve it under, by default the only one.
        head: folder or hub id of a quality head, ``"pocket"``, or the head itself; or several by name (a spec's
            ``head`` says which one scores, "" is the default); None for sampling without scores.
        engine: ``"vllm"``, ``"transformers"``, or ``"auto"``: vLLM where it is installed.
        server: base URLs of servers (``docs/serving.md``); then nothing is loaded here.
        **options: of the engine's class; those that the head's config names are their defaults.

    Raises:
        InputError: for an unknown engine, or without a model.
        HeadError: when the head cannot be read, or is for another hidden size.
        ServerError: when no server answers.
        MissingPackageError: when the engine is not installed, saying what to install.
    """
    if engine not in ENGINE_NAMES:
        raise InputError(f"engine is {engine!r}; it must be 'auto', 'vllm' or 'transformers'")
    config = _config_of(head)
    suited = config.engine if config else {}
    if server is not None:
        if importlib.util.find_spec("httpx") is None:
            raise MissingPackageError("servers need httpx, which is not installed: pip install 'arrol[server]'")
        from arrol_tts.engine.server_engine import ServerEngine

        # How a server computes was settled when it started; of the signals it is asked for what the head knows.
        options = {name: suited[name] for name in ("top_k",) if name in suited} | options
        return ServerEngine(server, model=None if model is None else str(model), head=head, **options)
    options = {**suited, **options}
    model = model or (config.base_model if config else None)
    if model is None:
        raise InputError(
            "there is no language model: pass model=, or head= with a head that names one, or server="
        )
    name = chosen_engine(engine)
    if importlib.util.find_spec(name) is None:
        raise MissingPackageError(
            f"a language model needs {name}, which is not installed: pip install 'arrol[cpu]' (vLLM without a "
            "GPU), 'arrol[vllm]' or 'arrol[transformers]'; votes over recorded traces need none of them"
        )
    if name == "vllm":
        from arrol_tts.engine.vllm_engine import VLLMEngine

        return VLLMEngine(model, head=head, **options)
    from arrol_tts.engine.transformers_engine import TransformersEngine

    return TransformersEngine(model, head=head, **options)


def chosen_engine(engine: str) -> str:
    """What ``"auto"`` comes to on this machine; any other name is itself."""
    if engine != "auto":
        return engine
    return "vllm" if importlib.util.find_spec("vllm") is not None else "transformers"


def _config_of(head: Heads) -> QualityHeadConfig | None:
    """Config of the default head, or of the first where none is the default."""
    heads = named_heads(head)
    if not heads:
        return None
    first = heads.get("", next(iter(heads.values())))
    if isinstance(first, (str, os.PathLike)):
        return read_head_config(resolve_head(first))
    return first.config
