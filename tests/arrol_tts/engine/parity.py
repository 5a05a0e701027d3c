"""An engine's traces against a plain transformers forward pass over the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from arrol_tts.engine.request import Question
from arrol_tts.pocket import POCKET_MODEL
from arrol_tts.prompts import encode_prompt
from arrol_tts.stopping import KeepShare, TraceSpec
from arrol_tts.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arrol_tts.head import QualityHead

SCORE_TOLERANCE = 1e-4
CONFIDENCE_TOLERANCE = 1e-3


class Reference:
    """The pocket model in plain transformers, float32, fed with the tokens that an engine sampled."""

    def __init__(self, heads: Mapping[str, QualityHead], top_k: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.heads, self.top_k = heads, top_k
        self.model: Any = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype="float32").eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(POCKET_MODEL)

    @torch.inference_mode()
    def read(self, question: str, token_ids: Sequence[int], head: str = "") -> tuple[NDArray[Any], NDArray[Any]]:
        """Score and confidence of each step: row k is the one whose input is the k-th generated token."""
        prompt = encode_prompt(self.tokenizer, question)
        output = self.model(input_ids=torch.tensor([[*prompt, *token_ids]]), output_hidden_states=True)
        steps = slice(len(prompt) - 1, len(prompt) - 1 + len(token_ids))
        stride = self.heads[head].config.stride
        scores = self.heads[head](output.hidden_states[-1][0, steps][::stride])
        scores = scores.repeat_interleave(stride)[: len(token_ids)]  # rows between do not change it
        logprobs = output.logits[0, steps].log_softmax(-1)
        return scores.numpy(), -logprobs.topk(self.top_k).values.mean(-1).numpy()

    def assert_signals(self, traces: Sequence[Trace], questions: Sequence[Question], spec: TraceSpec) -> None:
        """Every asked-for score and confidence is there, and equals the forward pass's."""
        texts = {question.id: question.text for question in questions}
        assert traces
        for trace in traces:
            scores, confidence = self.read(texts[trace.question_id], trace.token_ids or [], spec.head)
            asked = set(spec.score_at)
            if spec.score_finish and trace.finish_reason != "pruned":
                asked.add(trace.num_tokens - 1)
            assert list(trace.scores) == sorted(asked & set(range(trace.num_tokens)))
            for position, score in trace.scores.items():
                assert score == pytest.approx(float(scores[position]), abs=SCORE_TOLERANCE)
            assert (trace.confidence is not None) is spec.confidence
            if trace.confidence is not None:
                np.testing.assert_allclose(trace.confidence, confidence, atol=CONFIDENCE_TOLERANCE)

    def assert_pruned(
        self,
        traces: Sequence[Trace],
        questions: Sequence[Question],
        rule: KeepShare,
        *,
        head: str = "",
        late_tokens: int = 0,
    ) -> None:
        """Each group kept its share, the traces that the forward pass of a head scores highest.

        ``late_tokens`` is how many tokens beyond ``at + 1`` a step may have brought with it.
        """
        for question in questions:
            group = [trace for trace in traces if trace.question_id == question.id]
            scores = {}
            for trace in group:
                read, _ = self.read(question.text, trace.token_ids or [], head)
                scores[trace.sample_id] = float(read[min(rule.at, trace.num_tokens - 1)])
            best = sorted(scores.values(), reverse=True)[: rule.survivors(len(group))]
            # What ended by the step that brought the position's score is ranked with the rest, but cannot be
            # pruned any more. Traces with the same first tokens have the same score: either may be kept.
            soon = rule.at + 1 + late_tokens
            over = {t.sample_id for t in group if t.finish_reason != "pruned" and t.num_tokens <= soon}
            running = [trace for trace in group if trace.sample_id not in over]
            ended = [scores[sample_id] - best[-1] for sample_id in over]
            pruned = sum(trace.finish_reason == "pruned" for trace in group)
            most = len(group) - len(best) - sum(above < -SCORE_TOLERANCE for above in ended)
            least = len(group) - len(best) - sum(above <= SCORE_TOLERANCE for above in ended)
            assert least <= pruned <= most
            for trace in running:
                if trace.finish_reason == "pruned":
                    assert scores[trace.sample_id] <= best[-1] + SCORE_TOLERANCE
                    assert rule.at + 1 <= trace.num_tokens <= rule.at + 1 + late_tokens
                    assert f"at token {rule.at} is not among the best {len(best)} of" in trace.detail
                else:
                    assert scores[trace.sample_id] >= best[-1] - SCORE_TOLERANCE
