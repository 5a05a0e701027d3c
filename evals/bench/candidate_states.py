"""Hidden states of collected traces as arrays, for comparing designs of a head: one row a token.

The last layer's states are the collection's. Those of earlier layers are computed again with transformers over the
recorded token ids; the prompt is read once for all of its traces.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arrol_train.heads.collect import TRACES_FOLDER, CollectionManifest
from arrol_tts.errors import InputError
from arrol_tts.prompts import Prompt, prompt_ids
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace

QUARTERS = 4
"""Earlier layers are those at a quarter, a half and three quarters of the depth."""
ROWS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class GroupStates:
    """States of whole groups of traces. Rows lie trace after trace, traces group after group.

    Attributes:
        traces: without text and features; ``traces[g * n : (g + 1) * n]`` are the group g.
        n: traces of a group.
        starts: int64 ``[traces + 1]``, where each trace's rows start; row p of a trace is the state after p
            generated tokens, 0 being the prompt's end.
        last: float16 ``[rows, width]``, the last layer's.
        confidence: float32 ``[rows]``, of the token that the row predicts.
        earlier: float16 ``[rows, 3, width]``, at a quarter, a half and three quarters of the depth, or None.
        entropy: float32 ``[rows]``, of the next token's distribution in nats, or None.
    """

    traces: list[Trace]
    n: int
    starts: NDArray[np.int64]
    last: NDArray[np.float16]
    confidence: NDArray[np.float32]
    earlier: NDArray[np.float16] | None = None
    entropy: NDArray[np.float32] | None = None

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return len(self.traces) // self.n

    def rows_of(self, group: int) -> slice:
        """The rows of a group."""
        return slice(int(self.starts[group * self.n]), int(self.starts[(group + 1) * self.n]))

    def lengths(self, groups: Sequence[int]) -> NDArray[np.int64]:
        """Rows of each trace: int64 ``[groups * n]``."""
        traces = np.concatenate([np.arange(g * self.n, (g + 1) * self.n) for g in groups])
        return np.asarray(np.diff(self.starts)[traces])

    def labels(self, groups: Sequence[int]) -> NDArray[np.bool_]:
        """Whether each trace is right: bool ``[groups, n]``."""
        return np.array([[bool(t.correct) for t in self.traces[g * self.n : (g + 1) * self.n]] for g in groups])


def read_states(collection: Path, out: Path, *, limit: int | None = None, n: int | None = None) -> GroupStates:
    """The states of the questions of a collection that have all of their traces.

    What is read once is kept in a folder, and the same the next time, whatever the collection has by then.

    Args:
        collection: a folder of ``arrol-train collect --stride 1``.
        out: the folder that keeps it.
        limit: questions, the first by name; None for all.
        n: traces of each, by number; None for as many as the largest group has.

    Raises:
        InputError: when it lacks states at some tokens, or no question is complete.
    """
    if not (out / "starts.npy").exists():
        _write_states(collection, out, limit, n)
    rows = json.loads((out / "traces.json").read_text())
    return GroupStates(
        [Trace(**row) for row in rows["traces"]],
        rows["n"],
        np.load(out / "starts.npy"),
        np.load(out / "last.npy", mmap_mode="r"),
        np.load(out / "confidence.npy"),
    )


def _write_states(collection: Path, out: Path, limit: int | None, n: int | None) -> None:
    store = TraceStore(collection / TRACES_FOLDER)
    by_question: dict[str, set[int]] = defaultdict(set)
    for name, number in store.ids():
        by_question[name].add(number)
    n = n or max((len(numbers) for numbers in by_question.values()), default=0)
    whole = [name for name, have in by_question.items() if have >= set(range(n))]
    whole = sorted(whole, key=lambda name: (len(name), name))[:limit]  # q-9 before q-10
    if not whole:
        raise InputError(f"{collection} has no question with all of its {n} traces yet: collect more")
    out.mkdir(parents=True, exist_ok=True)
    place = {name: i for i, name in enumerate(whole)}
    wanted = len(whole) * n
    lengths = np.zeros(wanted, np.int64)
    for trace in store.read(["question_id", "sample_id", "num_tokens"]):
        if trace.question_id in place and trace.sample_id < n:
            lengths[place[trace.question_id] * n + trace.sample_id] = trace.num_tokens
    starts = np.concatenate([[0], np.cumsum(lengths)])
    width = CollectionManifest.read(collection).hidden_size
    last = _new_array(out / "last.npy", (int(starts[-1]), width))
    confidence = np.zeros(len(last), np.float32)
    kept: list[dict[str, Any]] = [{}] * wanted
    fields = ("question_id", "sample_id", "answer", "num_tokens", "correct", "token_ids", "features", "confidence")
    for trace in store.read(fields):
        if trace.question_id not in place or trace.sample_id >= n:
            continue
        where = place[trace.question_id] * n + trace.sample_id
        rows = slice(int(starts[where]), int(starts[where + 1]))
        if list(trace.features) != list(range(trace.num_tokens)) or trace.confidence is None:
            raise InputError(
                f"{collection}: sample {trace.sample_id} of {trace.question_id!r} has no state at some of its "
                "tokens: collect with --stride 1"
            )
        last[rows] = np.stack(list(trace.features.values()))
        confidence[rows] = trace.confidence
        names = ("question_id", "sample_id", "answer", "num_tokens", "correct", "token_ids")
        kept[where] = {name: getattr(trace, name) for name in names}
    last.flush()
    np.save(out / "confidence.npy", confidence)
    (out / "traces.json").write_text(json.dumps({"n": n, "traces": kept}))
    np.save(out / "starts.npy", starts)  # last: it says that all is there


def _new_array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float16]]:
    found: np.memmap[Any, np.dtype[np.float16]] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        path, "w+", np.float16, shape
    )
    return found


# --- what the collection does not have ------------------------------------------------------------


def with_earlier_layers(
    states: GroupStates, questions: Mapping[str, str], manifest: CollectionManifest, out: Path
) -> GroupStates:
    """The same with the states of earlier layers, computed once and kept; goes on where it was cut.

    Args:
        states: of some collection.
        questions: ``{question id: its text}``.
        manifest: of the collection.
        out: the folder that keeps them.
    """
    path, done = out / "earlier.npy", out / "earlier.done"
    shape = (len(states.last), QUARTERS - 1, states.last.shape[1])
    if not path.exists():
        _new_array(path, shape).flush()
    first = int(done.read_text()) if done.exists() else 0
    if first < states.groups:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        dtype = (manifest.engine or {}).get("dtype", "float32")
        model = AutoModelForCausalLM.from_pretrained(manifest.model, dtype=getattr(torch, dtype))
        tokenizer = AutoTokenizer.from_pretrained(manifest.model)
        variables = manifest.chat_template_kwargs
        prompt = Prompt.from_messages(manifest.prompt, chat=manifest.chat, chat_template_kwargs=variables)
        prompts = [
            prompt_ids(tokenizer, prompt.ask(name, questions[name]))
            for name in (trace.question_id for trace in states.traces[:: states.n])
        ]
        earlier = np.load(path, mmap_mode="r+")
        tokens = [trace.token_ids or [] for trace in states.traces]
        for group, found in earlier_layers(model, prompts, tokens, states.n, first):
            earlier[states.rows_of(group)] = found
            if group % 10 == 9 or group == states.groups - 1:
                earlier.flush()
                done.write_text(str(group + 1))
    return replace(states, earlier=np.load(path, mmap_mode="r"))


@torch.inference_mode()
def earlier_layers(
    model: Any, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], n: int, first: int = 0
) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """The states of earlier layers of each group's traces.

    Args:
        model: a causal language model of transformers; its last quarter of layers is cut off.
        prompts: token ids of each group's prompt; what all of them begin with is read once.
        tokens: generated token ids of the traces, group after group; the last of each is read by nobody.
        n: traces of a group.
        first: the first group.

    Yields:
        The group, and float16 ``[rows, 3, width]`` of its traces' rows.
    """
    body = model.model
    depth = len(body.layers)
    at = [depth * quarter // QUARTERS for quarter in range(1, QUARTERS)]
    body.layers = body.layers[: at[-1]]
    body.norm = torch.nn.Identity()  # the last state given would be normalised
    shared = _common(prompts)
    beginning = body(torch.tensor([prompts[0][:shared]]), use_cache=True).past_key_values if shared else None
    for group in range(first, len(prompts)):
        rest = torch.tensor([prompts[group][shared:]])
        read = body(rest, past_key_values=copy.deepcopy(beginning), use_cache=True, output_hidden_states=True)
        end = torch.stack([read.hidden_states[layer][0, -1] for layer in at])
        inputs = [list(ids[:-1]) for ids in tokens[group * n : (group + 1) * n]]
        longest = max(1, *map(len, inputs))
        # Padding is on the right, where causal attention never looks.
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in inputs])
        cache = read.past_key_values
        cache.batch_repeat_interleave(n)
        states = torch.stack(
            [body_states[:, :longest] for body_states in _at(body, padded, cache, at)], dim=2
        )  # [n, longest, 3, width]
        pieces = []
        for trace, ids in enumerate(inputs):
            pieces += [end[None], states[trace, : len(ids)]]
        yield group, torch.cat(pieces).float().numpy().astype(np.float16)


def _at(body: Any, ids: torch.Tensor, cache: Any, layers: Sequence[int]) -> list[torch.Tensor]:
    found = body(ids, past_key_values=cache, use_cache=True, output_hidden_states=True).hidden_states
    return [found[layer] for layer in layers]


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, one less than the shortest at most."""
    least = min(map(len, prompts)) - 1
    return next((i for i in range(least) if len({prompt[i] for prompt in prompts}) > 1), least)


@torch.inference_mode()
def with_entropy(states: GroupStates, manifest: CollectionManifest, out: Path) -> GroupStates:
    """The same with the entropy of each row's next token, from the last layer's states; computed once and kept."""
    path = out / "entropy.npy"
    if not path.exists():
        from transformers import AutoModelForCausalLM

        output = AutoModelForCausalLM.from_pretrained(manifest.model, dtype=torch.float32).lm_head
        found = np.zeros(len(states.last), np.float32)
        for start in range(0, len(found), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            logits = output(torch.from_numpy(np.asarray(states.last[rows], np.float32)))
            found[rows] = torch.distributions.Categorical(logits=logits).entropy().numpy()
        np.save(path, found)
    return replace(states, entropy=np.load(path))
