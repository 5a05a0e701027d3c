"""Weighted votes in lm-evaluation-harness as its model ``arrol``: ``arrol_evals.harness run --model arrol``.

Every request of a ``generate_until`` task is sampled n times and voted on, and the harness gets the text of the
heaviest trace that gave the winning answer, so that a task's own filters and metrics apply unchanged.
"""

from __future__ import annotations

from typing import Any, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from arrol_tts.engine.request import SAMPLING_PARAMETERS
from arrol_tts.errors import InputError
from arrol_tts.plan import SampleOptions
from arrol_tts.voter import WeightedVoter
from arrol_tts.voting import VoteResult

from .sampling.run_settings import RunSettings


@register_model("arrol")
class VotingLM(LM):  # type: ignore[misc]  # the harness is untyped
    """A model of the harness that answers by votes.

    Args:
        head: folder or hub id of a quality head, or ``pocket``.
        model: language model, by default the head's.
        n: traces per request.
        method: voting method; without a head ``majority`` or ``deepconf``.
        keep: share of the traces to keep at the detection position; by default the head's.
        chat: send requests through the model's chat template; False for base models.
        max_tokens: of a trace; by default the head's. The harness's ``max_gen_toks`` and temperature, which are
            meant for a single greedy text, are not used.
        seed: of the sampling.
        server: base URL of a server with the plug-in, several separated by ``+``.
        voter: a voter that is there already, in place of the model and head.
        batch_size, device: of the harness; not used.
        **options: parameters of the sampling, such as ``top_k=20``; others are passed to the engine.
    """

    def __init__(
        self,
        head: str | None = None,
        model: str | None = None,
        n: int = 32,
        method: str | None = None,
        keep: float | None = None,
        chat: bool = True,
        max_tokens: int | None = None,
        seed: int = 0,
        server: str | None = None,
        voter: WeightedVoter | None = None,
        batch_size: Any = None,
        device: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if voter is None:
            if head is None and model is None:
                raise InputError("name a head or a model: --model_args head=...,n=32")
            settings = RunSettings(
                model=model,
                head=head,
                servers=tuple(server.split("+")) if server else (),
                engine_options={name: value for name, value in options.items() if name not in SAMPLING_PARAMETERS},
            )
            voter = settings.load_voter()
        self._voter = voter
        self._n, self._method = int(n), method
        sampling = {name: value for name, value in options.items() if name in SAMPLING_PARAMETERS}
        fixed = {"keep": keep, "max_tokens": max_tokens, "chat": chat, "seed": int(seed)}
        self._options = cast(SampleOptions, sampling | fixed)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One text a request: see the module."""
        by_stops: dict[tuple[str, ...], list[int]] = {}
        for i, request in enumerate(requests):
            by_stops.setdefault(_stops(request.args[1]), []).append(i)
        answers = [""] * len(requests)
        for stop, numbers in by_stops.items():
            texts = {str(i): requests[i].args[0] for i in numbers}
            results = self._voter.solve_many(texts, self._n, method=self._method, **self._options | {"stop": stop})
            for i, result in zip(numbers, results, strict=True):
                answers[i] = _winner(result)
        return answers

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Votes have no likelihood.

        Raises:
            NotImplementedError: always, saying which tasks to choose.
        """
        raise NotImplementedError(
            "a vote needs generated answers: choose tasks of type generate_until, such as gsm8k_cot_zeroshot"
        )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As ``loglikelihood``."""
        raise NotImplementedError("a vote has no perplexity: choose tasks of type generate_until")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Not the harness's to do.

        Raises:
            NotImplementedError: always, saying what to do instead.
        """
        raise NotImplementedError(
            "arrol puts requests through the chat template itself: leave --apply_chat_template out, and say "
            "--model_args chat=False for base models"
        )


def _winner(result: VoteResult) -> str:
    """The text of the heaviest trace for the winning answer; without a winner, of the first trace."""
    ranked = zip(result.choices, result.weights, result.traces, strict=True)
    votes = [(weight, -trace.sample_id, trace.text) for choice, weight, trace in ranked if choice == 0]
    return max(votes)[2] if votes else result.traces[0].text


def _stops(options: dict[str, Any]) -> tuple[str, ...]:
    until = options.get("until") or ()
    return tuple(filter(None, (until,) if isinstance(until, str) else until))


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
