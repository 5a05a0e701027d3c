"""How a problem is asked: as a chat message, by the head's own prompt, or after worked examples as plain text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from arrol_tts.engine.request import Question
from arrol_tts.errors import InputError
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.prompts import Prompt

from ..benchmarks import Benchmark, Problem

STYLES = ("auto", "chat", "few-shot", "head")

PROBLEM, SOLUTION = "Problem: ", "\nSolution:"
END = f"\n\n{PROBLEM.strip()}"
"""Where a base model has finished its solution and goes on with a problem of its own."""


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """A style of prompt.

    Attributes:
        name: ``chat`` sends the question with the benchmark's instruction through the model's chat template;
            ``head`` sends the question alone, in the prompt that the head was trained with; ``few-shot`` puts
            worked examples before it, as plain text.
        system: system prompt, in place of the head's own.
    """

    name: Literal["chat", "few-shot", "head"] = "chat"
    system: str | None = None

    def text(self, benchmark: Benchmark, problem: Problem) -> str:
        """What is asked; benchmarks without worked examples have none in the few-shot style either."""
        if self.name == "head":
            return problem.question
        if self.name == "chat" or not benchmark.shots:
            return problem.question + benchmark.instruction
        shots = [f"{PROBLEM}{shot.question}{SOLUTION} {shot.solution}\n\n" for shot in benchmark.shots]
        return "".join(shots) + f"{PROBLEM}{problem.question}{SOLUTION}"

    def stop(self, config: QualityHeadConfig | None) -> tuple[str, ...]:
        """Texts that end a trace; those of the head where the prompt is its own."""
        if self.name == "head":
            return tuple(config.sampling.get("stop", ())) if config else ()
        return (END,) if self.name == "few-shot" else ()

    def around(self, config: QualityHeadConfig | None) -> Prompt:
        """What stands around the text; for the voter, and for the engine's questions."""
        if self.name == "head" and config is not None:
            prompt = Prompt.of_head(config)
        else:
            prompt = Prompt(chat=self.name != "few-shot")
        return prompt if self.system is None else prompt.with_system(self.system)

    def question(self, benchmark: Benchmark, problem: Problem, config: QualityHeadConfig | None) -> Question:
        """The engine's question."""
        return self.around(config).ask(problem.id, self.text(benchmark, problem))


def choose_style(
    name: str, tokenizer: Any | None, config: QualityHeadConfig | None, *, system: str | None = None
) -> PromptStyle:
    """The style of a name.

    ``auto`` is the head's prompt where it has one, else chat where the model has a chat template, else few-shot.

    Args:
        name: one of ``STYLES``.
        tokenizer: the model's; None when it is not here, but on a server, which is taken to have a chat template.
        config: the head's, None without one.
        system: system prompt, in place of the head's own.

    Raises:
        InputError: for an unknown style, or one that model or head do not have.
    """
    if name not in STYLES:
        raise InputError(f"--prompt is {name!r}; choose from {', '.join(STYLES)}")
    has_template = tokenizer is None or bool(getattr(tokenizer, "chat_template", None))
    has_prompt = config is not None and bool(config.prompt)
    if name == "chat" and not has_template:
        raise InputError("--prompt chat: this model has no chat template; use --prompt few-shot")
    if name == "head" and not has_prompt:
        raise InputError("--prompt head: this head was trained without a prompt of its own; use chat or few-shot")
    if name == "few-shot" or (name == "auto" and not has_prompt and not has_template):
        return PromptStyle("few-shot", system)
    return PromptStyle("head" if name == "head" or (name == "auto" and has_prompt) else "chat", system)
