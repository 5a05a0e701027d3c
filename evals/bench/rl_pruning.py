"""Rollouts pruned in the engine and beside the trainer: ``python -m evals.bench.rl_pruning``.

The two ways of ``rollout.choose_in`` roll out the same steps with one engine and one head, and take turns at going
first. Processor seconds of this process are taken, in which the engine runs too: on a busy machine they are surer
than the clock. Ways are compared by the seconds of a token. The head is one on the fly, taught in a step
without pruning. The policy stays as it is, so that the rollouts alone are measured.

The pocket model is synthetic. SmolLM2-135M-Instruct (``python -m evals.smollm2``) is asked word problems from
templates, and is left out where its folder is missing.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from transformers import AutoTokenizer

from arrol_train.rewards import Grader, Reward, Row, math_reward, pocket_reward
from arrol_train.rl.config import RolloutConfig
from arrol_train.rl.group import Group
from arrol_train.rl.learner import HeadLearner
from arrol_train.rl.online_head import OnlineHead
from arrol_train.rl.sampler import GroupSampler
from arrol_tts.engine.base import hidden_size_of
from arrol_tts.engine.vllm_engine import VLLMEngine
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.metrics import bootstrap_ratio_interval
from arrol_tts.pocket import POCKET_MODEL, questions

from ..smollm2 import FOLDER
from ..word_problems import problems
from . import write_result

WAYS = ("engine", "trainer")
KEEP = 0.5
ROWS = 256


@dataclass(frozen=True, slots=True)
class Setting:
    """What is rolled out.

    Attributes:
        model: folder.
        prompts: of a step.
        group: rollouts of each.
        at: detection position.
        max_tokens: of a rollout.
        slots: of the engine.
        dtype: of the model.
    """

    model: Path
    prompts: int
    group: int
    at: int
    max_tokens: int
    slots: int
    dtype: str


SETTINGS = {
    "pocket": Setting(POCKET_MODEL, 8, 16, 16, 256, 16, "float32"),
    "pocket_all_slots": Setting(POCKET_MODEL, 8, 16, 16, 256, 128, "float32"),
    "smollm2_135m": Setting(FOLDER, 2, 8, 16, 96, 16, "bfloat16"),
}
"""The first two as the RL benchmark has them, with an eighth of a step's rollouts at once and with all of them."""


def main(
    steps: Annotated[int, typer.Option(help="steps of each model")] = 12,
    smollm2: Annotated[Path, typer.Option(help="folder of SmolLM2-135M-Instruct")] = FOLDER,
) -> None:
    """Measure every model that is there; write evals/results/rl_pruning.json, anew after each."""
    figures: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        model = smollm2 if setting.model == FOLDER else setting.model
        if model.is_dir():
            figures[name] = measure(setting, model, steps)
            write_result("rl_pruning", figures, [0])
    Console().print_json(data=figures)


def measure(setting: Setting, model: Path, steps: int) -> dict[str, Any]:
    """Seconds of both ways, and what they did."""
    rows, reward = _rows(setting)
    head_config = QualityHeadConfig(
        "../policy", hidden_size_of(model), inner_size=32, positions=[setting.at], pooling="mean"
    )
    head = OnlineHead(head_config)
    engine = VLLMEngine(
        model, dtype=setting.dtype, max_model_len=384, max_num_seqs=setting.slots, top_k=5, block_size=32
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    samplers = {
        way: GroupSampler(engine, rows, Grader(reward, 30.0), _config(setting, way), head, tokenizer, 0)
        for way in WAYS
    }
    HeadLearner(head, updates=32).learn(samplers["engine"].roll_step(range(setting.prompts), 0), 0)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    tokens: dict[str, list[int]] = {way: [] for way in WAYS}
    groups: dict[str, list[Group]] = {way: [] for way in WAYS}
    for step in range(steps + 1):
        begin = setting.prompts * (step + 1)
        asked = range(begin, begin + setting.prompts)
        for way in WAYS if step % 2 else reversed(WAYS):
            started = time.process_time()
            rolled = samplers[way].roll_step(asked, step + 1)
            if step:  # the first one warms up
                seconds[way].append(time.process_time() - started)
                tokens[way].append(sum(len(r.token_ids) for group in rolled for r in group.rollouts))
                groups[way] += rolled
    engine.close()
    # Rollouts end at different tokens where the two ways' batches round differently, so a token's seconds count.
    a_token = {way: np.divide(seconds[way], tokens[way]) for way in WAYS}
    return {
        "prompts": setting.prompts,
        "group": setting.group,
        "detection_position": setting.at,
        "keep": KEEP,
        "slots": setting.slots,
        "steps": steps,
        "seconds": {way: float(np.mean(each)) for way, each in seconds.items()},
        "tokens": {way: float(np.mean(each)) for way, each in tokens.items()},
        "engine_times_as_fast": float(a_token["trainer"].sum() / a_token["engine"].sum()),
        "engine_times_as_fast_interval": list(bootstrap_ratio_interval(a_token["trainer"], a_token["engine"])),
        "groups": len(groups["engine"]),
        "groups_handed_back": sum(group.early > 0 for group in groups["engine"]),
        "same_number_survived": all(len(g.survivors) == KEEP * setting.group for way in WAYS for g in groups[way]),
    }


def _rows(setting: Setting) -> tuple[list[Row], Reward]:
    if setting.model == POCKET_MODEL:
        asked = itertools.islice(questions("train"), ROWS)
        return [{"prompt": q.text, "question": q.text, "answer": q.answer} for q in asked], pocket_reward
    prompt = "{question} Reason step by step, and put the final answer within \\boxed{{}}."
    found = itertools.islice(problems(0, (1,)), ROWS)
    return [
        {"prompt": prompt.format(question=row["question"]), "answer": row["answer"]} for row in found
    ], math_reward


def _config(setting: Setting, way: str) -> RolloutConfig:
    return RolloutConfig.model_validate(
        {
            "group": setting.group,
            "detect": [{"at": setting.at, "keep": KEEP}],
            "cold_start": 1,
            "max_tokens": setting.max_tokens,
            "choose_in": way,
        }
    )


if __name__ == "__main__":
    typer.run(main)
