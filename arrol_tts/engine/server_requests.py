"""What servers are asked: bodies of OpenAI's API, with vLLM's and the plug-in's additions where they are known."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

from arrol_tts.engine.request import Question, Sampling
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.prompts import plain_text
from arrol_tts.stopping import TraceSpec

VLLM_ONLY = ("top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids")
"""Parameters of a Sampling that OpenAI's API has not, and vLLM's servers add."""


def beyond_openai(sampling: Sampling) -> str:
    """The first parameter that is set and that OpenAI's API has not; "" where there is none."""
    defaults = {field.name: field.default for field in fields(Sampling)}
    return next((name for name in VLLM_ONLY if getattr(sampling, name) != defaults[name]), "")


def request_body(
    question: Question,
    sampling: Sampling,
    spec: TraceSpec,
    *,
    model: str,
    chats: bool,
    is_vllm: bool,
    plug_in: bool,
    top_k: int,
) -> dict[str, Any]:
    """What the requests for a question's traces have in common: all but their seeds.

    Args:
        question: what to ask.
        sampling: how to sample.
        spec: what to record and when to stop; without the plug-in, token confidences and stop texts only.
        model: its name on the server.
        chats: whether the question is sent as a chat.
        is_vllm: whether the server is vLLM's.
        plug_in: whether it has the plug-in.
        top_k: candidates of the token confidence, where they are asked for one by one.
    """
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(sampling, name):
            body[name] = getattr(sampling, name)
    if is_vllm:
        # Said explicitly, because a model's generation_config would fill in what is left out.
        body |= {name: getattr(sampling, name) for name in VLLM_ONLY} | {"return_token_ids": True}
    if plug_in:
        # Log-probabilities are the API's own: it would not do without those it was asked for.
        asked = replace(spec, logprobs=False)
        if asked.asks_anything:
            body["vllm_xargs"] = {CONFIG_KEY: json.dumps(asked.to_dict())}
        if spec.stop or sampling.stop_token_ids:
            # The plug-in ends a trace as an end-of-text token would, whose text vLLM leaves out.
            body["include_stop_str_in_output"] = True
    else:
        if spec.stop:
            body["stop"] = list(spec.stop)
        if spec.confidence:
            body |= {"logprobs": True, "top_logprobs": top_k} if chats else {"logprobs": top_k}
            if is_vllm and not chats:
                body["return_tokens_as_token_ids"] = True  # texts of tokens are not unique
    if spec.logprobs and "logprobs" not in body:
        body |= {"logprobs": True, "top_logprobs": 0} if chats else {"logprobs": 0}
    if chats:
        if question.chat_template_kwargs:
            body["chat_template_kwargs"] = dict(question.chat_template_kwargs)
        return body | {"messages": question.conversation} | dict(question.request_fields)
    if question.token_ids is not None:
        return body | {"prompt": list(question.token_ids)}
    return body | {"prompt": plain_text(question.messages)}
