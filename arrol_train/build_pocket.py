"""Make the pocket model and its quality head (synthetic): ``python -m arrol_train.build_pocket``.

Two seeded stages. ``model``: supervised training of a tiny Qwen3 on texts of both strategies (see
``arrol_tts/pocket/task.py``). ``head``: what ``arrol-train collect`` and ``arrol-train head`` do for any model, on
training questions. No test question of the pocket task is used here: the head's own test is a part of those.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from torch.nn.functional import cross_entropy

from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL
from arrol_tts.pocket.task import CHARACTERS, training_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

SPECIAL = ["<pad>", "<eos>", "<bos>"]
VOCABULARY = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
HIDDEN_SIZE = 128
POOL = 2048
MAX_TOKENS = 256
TOP_K = 5
"""Of the token confidence: the pocket vocabulary has 26 tokens, DeepConf's 20 would be nearly all of it."""


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
    batches = text_batches(training_text(seed), batch_tokens, seed)
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


def text_batches(
    texts: Iterator[tuple[str, str]], batch_tokens: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of texts of like length: inputs and next-token targets, -1 where nothing is learned.

    Args:
        texts: endless pairs of question and solution in the pocket language.
        batch_tokens: tokens of a batch, padding included.
        seed: of the order of batches.
    """
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
    collection: Annotated[Path, typer.Option(help="folder of the samples")] = Path("runs/pocket-collection"),
    questions: Annotated[int, typer.Option(help="training questions to sample")] = 800,
    n: Annotated[int, typer.Option(help="traces per question")] = 16,
    seed: Annotated[int, typer.Option(help="of questions, sampling and training")] = 0,
) -> None:
    """Train the head on the model's own traces of training questions (about ten minutes on two cores)."""
    from arrol_train.heads.collect import CollectionManifest
    from arrol_train.heads.collect_progress import collect_with_progress
    from arrol_train.heads.dataset import open_collected
    from arrol_train.heads.make import HeadOptions, make_head, save_head
    from arrol_train.heads.train import HeadTraining
    from arrol_train.questions import TrainingQuestion
    from arrol_train.rewards import pocket_reward
    from arrol_tts.engine.load import load_engine
    from arrol_tts.pocket import questions as question_stream
    from arrol_tts.revision import model_revision

    # The model learned from the first stream of training questions; these are from another one.
    asked = list(itertools.islice(question_stream("train", seed + 1), questions))
    problems = [TrainingQuestion(f"train-{i}", question.text, question.answer) for i, question in enumerate(asked)]
    engine: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "top_k": TOP_K}
    manifest = CollectionManifest(
        model=str(model),
        revision=model_revision(model),
        hidden_size=HIDDEN_SIZE,
        data=f"pocket training questions, seed {seed + 1}",
        data_sha256=hashlib.sha256("\n".join(question.text for question in asked).encode()).hexdigest(),
        prompt=[],
        sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": MAX_TOKENS, "seed": seed},
        positions=[16, 32],
        top_k=TOP_K,
        engine=engine,
        synthetic=True,
        stride=1,
    )
    collect_with_progress(
        lambda: load_engine(model, engine="vllm", **engine),
        manifest,
        problems,
        pocket_reward,
        collection,
        n=n,
    )
    options = HeadOptions(
        # With so many traces a gate pays: it tells right from wrong across questions better (AUROC .980, the plain
        # mean .966), which is what ends waves early.
        pooling="gated",
        positions=(16, 32),
        sizes=(0, 128),
        weight_decays=(0.05,),
        seeds=1,
        cross_fit=0,
        base_model="../model",
        training=HeadTraining(seed=seed),
    )
    with open_collected(collection) as collected:
        made = make_head(collected, options)
    save_head(made, collection / "head", collection)  # with its card and figures
    made.chosen.head.save_pretrained(out)
    typer.echo(f"wrote {out}: {made.chosen.head.config.metrics} {made.chosen.head.config.voting}")


if __name__ == "__main__":
    app()
