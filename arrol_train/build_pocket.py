"""Make the pocket model and its quality head (synthetic): ``python -m arrol_train.build_pocket``.

Two seeded stages. ``model``: supervised training of a tiny Qwen3 on texts of both strategies (see
``arrol_tts/pocket/task.py``). ``head``: sample training questions with it, read the hidden states of the
traces, train the head, and choose on training questions what the votes need (DeepConf's windows, how the
quality vote weighs). No test question is used anywhere here.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from torch.nn.functional import cross_entropy

from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL, verify
from arrol_tts.pocket.task import CHARACTERS, training_text
from arrol_tts.voting import vote

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from arrol_tts.trace import Trace

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

SPECIAL = ["<pad>", "<eos>", "<bos>"]
VOCABULARY = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
HIDDEN_SIZE = 128
POOL = 2048
MAX_TOKENS = 256
TOP_K = 5
"""Of the token confidence: the pocket vocabulary has 26 tokens, DeepConf's 20 would be nearly all of it."""
WINDOWS = (8, 16, 32, 64, 2048)
"""DeepConf windows tried, 2048 being the published one."""


@app.command()
def model(
    out: Annotated[Path, typer.Option(help="folder of the model")] = POCKET_MODEL,
    steps: Annotated[int, typer.Option(help="optimiser steps")] = 3000,
    batch_tokens: Annotated[int, typer.Option(help="tokens of a batch, padding included")] = 4096,
    learning_rate: Annotated[float, typer.Option(help="peak, decayed linearly")] = 5e-3,
    seed: Annotated[int, typer.Option(help="of weights and texts")] = 0,
) -> None:
    """Train the language model (about 20 minutes on one core)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=3 * HIDDEN_SIZE,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=VOCABULARY["<pad>"],
        eos_token_id=VOCABULARY["<eos>"],
        bos_token_id=VOCABULARY["<bos>"],
    )
    lm = Qwen3ForCausalLM(config)
    # Muon on the matrices needs a third of AdamW's steps here.
    matrices = [p for name, p in lm.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in lm.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.95)),
    ]
    batches = _batches(batch_tokens, seed)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[loss]}")) as bar:
        task = bar.add_task("pocket model", total=steps, loss="")
        for step in range(steps):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * min(1, (step + 1) / 50) * (1 - 0.98 * step / steps)
            inputs, targets = next(batches)
            # Padding is on the right, where causal attention never looks: no mask is needed.
            hidden = lm.model(input_ids=inputs).last_hidden_state
            learn = targets >= 0
            loss = cross_entropy(lm.lm_head(hidden[learn]), targets[learn])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            bar.update(task, advance=1, loss=f"loss {loss.item():.4f}")
    lm.save_pretrained(out)
    _tokenizer().save_pretrained(out)
    typer.echo(f"wrote {out}")


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<pad>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    tokenizer.chat_template = "{{ bos_token }}{{ messages[-1]['content'] | replace(' ', '') }}\n"
    return tokenizer


def _batches(batch_tokens: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of texts of like length: inputs and next-token targets, -1 where nothing is learned."""
    texts = training_text(seed)
    rng = random.Random(seed)
    while True:
        pool = []
        for question, text in itertools.islice(texts, POOL):
            prompt = [VOCABULARY["<bos>"], *(VOCABULARY[c] for c in question + "\n")]
            pool.append((prompt, [*(VOCABULARY[c] for c in text), VOCABULARY["<eos>"]]))
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        batches: list[list[tuple[list[int], list[int]]]] = [[]]
        for pair in pool:
            length = len(pair[0]) + len(pair[1])
            if (len(batches[-1]) + 1) * length > batch_tokens:
                batches.append([])
            batches[-1].append(pair)
        rng.shuffle(batches)
        for batch in batches:
            width = max(len(prompt) + len(solution) for prompt, solution in batch)
            inputs = torch.zeros(len(batch), width, dtype=torch.long)
            targets = torch.full((len(batch), width), -1)
            for i, (prompt, solution) in enumerate(batch):
                ids = torch.tensor(prompt + solution)
                inputs[i, : len(ids)] = ids
                targets[i, len(prompt) - 1 : len(ids) - 1] = torch.tensor(solution)
            yield inputs, targets


@app.command()
def head(
    model: Annotated[Path, typer.Option(help="folder of the model")] = POCKET_MODEL,
    out: Annotated[Path, typer.Option(help="folder of the head")] = POCKET_HEAD,
    questions: Annotated[int, typer.Option(help="training questions to sample")] = 800,
    n: Annotated[int, typer.Option(help="traces per question")] = 16,
    at: Annotated[int, typer.Option(help="detection position in generated tokens")] = 32,
    seed: Annotated[int, typer.Option(help="of questions, sampling and training")] = 0,
) -> None:
    """Train the head on the model's own traces of training questions (about ten minutes on two cores)."""
    from arrol_train.collect import hidden_states
    from arrol_train.head_trainer import HeadTraining, held_out_rows, train_head
    from arrol_tts.answers import extract_answer
    from arrol_tts.engine.base import Question, Sampling
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from arrol_tts.head_config import QualityHeadConfig
    from arrol_tts.pocket import questions as question_stream
    from arrol_tts.stopping import TraceSpec

    # The model learned from the first stream of training questions; these are from another one.
    asked = list(itertools.islice(question_stream("train", seed + 1), questions))
    texts = {f"train-{i}": question.text for i, question in enumerate(asked)}
    engine = VLLMEngine(model, dtype="float32", max_model_len=512, top_k=TOP_K)
    sampling = Sampling(n=n, temperature=1.0, max_tokens=MAX_TOKENS, seed=seed)
    traces = []
    with Progress() as bar:
        task = bar.add_task("traces", total=questions * n)
        asking = [Question(name, text) for name, text in texts.items()]
        for trace in engine.sample(asking, sampling, TraceSpec(confidence=True)):
            trace.answer = extract_answer(trace.text) if trace.finish_reason == "stop" else None
            trace.correct = verify(texts[trace.question_id], trace.answer)
            traces.append(trace)
            bar.advance(task)
    engine.close()

    # Two rows a trace: the detection position, and the last state before the end.
    rows = [sorted({min(at, trace.num_tokens - 1), trace.num_tokens - 1}) for trace in traces]
    states = list(hidden_states(model, [texts[t.question_id] for t in traces], traces, rows))
    names = {name: i for i, name in enumerate(texts)}
    row_questions = np.repeat([names[t.question_id] for t in traces], [len(r) for r in rows])
    training = HeadTraining(seed=seed)
    trained = train_head(
        features=np.concatenate(states),
        labels=np.repeat([bool(t.correct) for t in traces], [len(r) for r in rows]),
        questions=row_questions,
        positions=np.concatenate([[int(k != at) for k in r] for r in rows]),
        config=QualityHeadConfig(
            base_model="../model",
            hidden_size=HIDDEN_SIZE,
            inner_size=128,
            positions=[at],
            sampling={"temperature": 1.0, "max_tokens": MAX_TOKENS},
            engine={"top_k": TOP_K, "dtype": "float32"},
        ),
        training=training,
    )
    with torch.inference_mode():
        for trace, positions, state in zip(traces, rows, states, strict=True):
            scores = trained(torch.from_numpy(state)).tolist()
            trace.scores = dict(zip(positions, scores, strict=True))
    held_out = {
        name for name, i in names.items() if i in set(row_questions[held_out_rows(row_questions, training)])
    }
    trained.config.voting = _best_options(traces, [t for t in traces if t.question_id in held_out])
    trained.config.metrics |= {
        "synthetic": True,
        "training_questions": questions,
        "traces_per_question": n,
        "mean_accuracy": round(float(np.mean([t.correct for t in traces])), 4),
        "mean_tokens": round(float(np.mean([t.num_tokens for t in traces])), 1),
    }
    trained.save_pretrained(out)
    typer.echo(f"wrote {out}: {trained.config.metrics} {trained.config.voting}")


def _best_options(traces: list[Trace], held_out: list[Trace]) -> dict[str, dict[str, Any]]:
    """Each method at its best on training questions; the head's own on those it did not learn from."""
    return {
        "deepconf": _best("deepconf", traces, [{"window": window} for window in WINDOWS]),
        "deepconf-lowest": _best("deepconf-lowest", traces, [{"window": window} for window in WINDOWS]),
        "deepconf-tail": _best("deepconf-tail", traces, [{"tail": window} for window in WINDOWS]),
        "quality": _best(
            "quality",
            held_out,
            [{"over": over, "odds_power": power} for over in ("last", "mean") for power in (None, 0.5, 1.0, 2.0)],
        ),
    }


def _best(method: str, traces: list[Trace], options: list[dict[str, Any]]) -> dict[str, Any]:
    by_question = sorted(traces, key=lambda trace: trace.question_id)
    groups = [list(group) for _, group in itertools.groupby(by_question, lambda trace: trace.question_id)]

    def accuracy(chosen: dict[str, Any]) -> float:
        return float(np.mean([bool(vote(group, method, **chosen).correct) for group in groups]))

    return max(options, key=accuracy)


if __name__ == "__main__":
    app()
