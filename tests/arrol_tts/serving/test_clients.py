"""Other people's clients against a real ``arrol-serve pocket``: one process for the file, over HTTP.

What they do in three lines is in docs/apps.md. None of them may reach beyond this machine.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the endpoint is not installed: pip install 'arrol[serve]'")
pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'arrol[cpu]'")
from arrol_tts.pocket import questions
from evals.bench.crowd import Crowd, come_and_go
from tests.arrol_tts.serving.command import Serving, arrol_serve
from tests.paths import ROOT

QUESTION, ANSWER = "9+9*4-4-3-5-4*5", "13"
"""A pocket question that the majority gets wrong, with seed 0 and nothing pruned."""

MESSAGES: Any = [{"role": "user", "content": QUESTION}]
VOTE: Any = {"arrol": {"n": 16}}
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
"""Before the clients are imported: without it some ask the network for prices, or report what they did."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("clients")
    with pytest.MonkeyPatch.context() as patch, arrol_serve(folder / "serve.log", "pocket") as serving:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        patch.setenv("DSPY_CACHEDIR", str(folder / "dspy"))
        patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
        yield serving


@pytest.fixture
def url(serving: Serving) -> str:
    return f"{serving.url}/v1"


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No client connects elsewhere, or looks a name up; several would not say that they could not."""
    asked: list[object] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            asked.append(address)
            raise OSError(f"no network in tests: {address}")
        connect(self, address)

    def guarded_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if host not in (None, "127.0.0.1", "::1", "localhost"):
            asked.append(host)
            raise socket.gaierror(f"no network in tests: {host}")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield
    assert asked == []


def is_answer(text: str | None) -> bool:
    return text is not None and text.endswith(f"answer {ANSWER}")


# --- openai ---------------------------------------------------------------------------------------


def test_openai(url: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=url, api_key="none")
    reply = client.chat.completions.create(model="pocket", messages=MESSAGES, seed=0, extra_body=VOTE)
    assert is_answer(reply.choices[0].message.content)
    assert (reply.arrol["answer"], len(reply.arrol["samples"])) == (ANSWER, 16)
    assert reply.usage.completion_tokens == sum(sample["tokens"] for sample in reply.arrol["samples"])


def test_openai_asynchronously_many_at_once(url: str) -> None:
    openai = pytest.importorskip("openai")
    asked = list(itertools.islice(questions("test"), 6))

    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            chat = client.chat.completions
            return await asyncio.gather(
                *(
                    chat.create(
                        model="pocket@quality-8", messages=[{"role": "user", "content": question.text}], seed=0
                    )
                    for question in asked
                )
            )

    replies = asyncio.run(ask_all())
    last_steps = [reply.choices[0].message.content.rpartition("answer ")[2] for reply in replies]
    assert last_steps == [reply.arrol["answer"] for reply in replies]
    assert sum(a == question.answer for a, question in zip(last_steps, asked, strict=True)) >= 5


def test_openai_streams_the_text_and_shows_the_vote_to_who_looks(url: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=url, api_key="none")
    options = {"seed": 0, "stream": True, "stream_options": {"include_usage": True}, "extra_body": VOTE}
    chunks = list(client.chat.completions.create(model="pocket", messages=MESSAGES, **options))
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert is_answer("".join(said))
    votes = [chunk.arrol for chunk in chunks if hasattr(chunk, "arrol")]
    assert votes[-1]["answer"] == ANSWER
    assert chunks[-1].usage.completion_tokens == votes[-1]["tokens"]["generated"]


def test_openai_streams_asynchronously_and_may_leave(url: str) -> None:
    openai = pytest.importorskip("openai")

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            chat = client.chat.completions
            long = {"min_tokens": 400, "arrol": {"n": 32, "keep": 1}}
            async with await chat.create(
                model="pocket", messages=MESSAGES, stream=True, max_tokens=400, extra_body=long
            ) as left:
                async for _ in left:
                    break
            stream = await chat.create(model="pocket@quality-16", messages=MESSAGES, seed=0, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    assert is_answer(asyncio.run(ask()))


def test_openai_says_which_field_is_wrong(url: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=url, api_key="none")
    with pytest.raises(openai.BadRequestError, match="arrol.keep") as found:
        client.chat.completions.create(model="pocket", messages=MESSAGES, extra_body={"arrol": {"keep": 7.5}})
    assert found.value.param == "arrol.keep"


def test_openai_sees_an_abstention_as_a_refusal(url: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=url, api_key="none")
    unsure = {"arrol": {"n": 16, "method": "majority", "min_confidence": 1.0}}
    reply = client.chat.completions.create(model="pocket", messages=MESSAGES, seed=0, extra_body=unsure)
    message = reply.choices[0].message
    assert (message.content, reply.arrol["abstained"]) == (None, True)
    assert "abstained" in message.refusal


def test_openai_plain_completions(url: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=url, api_key="none")
    reply = client.completions.create(model="pocket", prompt=QUESTION, seed=0, extra_body=VOTE)
    assert "answer" in reply.choices[0].text


# --- frameworks -----------------------------------------------------------------------------------


@pytest.fixture
def langchain(url: str) -> Any:
    found = pytest.importorskip("langchain_openai")
    return found.ChatOpenAI(base_url=url, api_key="none", model="pocket", seed=0, extra_body=VOTE)


def test_langchain(langchain: Any) -> None:
    message = langchain.invoke(QUESTION)
    assert is_answer(message.content)
    assert message.usage_metadata["output_tokens"] > 16 * 30  # of all samples


def test_langchain_in_a_chain_in_batches_and_asynchronously(langchain: Any) -> None:
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate

    chain = ChatPromptTemplate.from_messages([("user", "{question}")]) | langchain | StrOutputParser()
    assert [is_answer(text) for text in chain.batch([{"question": QUESTION}] * 2)] == [True, True]
    assert is_answer(asyncio.run(chain.ainvoke({"question": QUESTION})))


def test_langchain_streams(langchain: Any) -> None:
    assert is_answer("".join(chunk.content for chunk in langchain.stream(QUESTION)))


def test_litellm(url: str) -> None:
    litellm = pytest.importorskip("litellm")
    where = {"api_base": url, "api_key": "none"}
    reply = litellm.completion("openai/pocket@quality-16", MESSAGES, seed=0, **where)
    assert is_answer(reply.choices[0].message.content)
    assert reply.arrol["answer"] == ANSWER
    stream = litellm.completion("openai/pocket", MESSAGES, seed=0, stream=True, extra_body=VOTE, **where)
    assert is_answer("".join(chunk.choices[0].delta.content or "" for chunk in stream))
    again = asyncio.run(litellm.acompletion("openai/pocket", MESSAGES, seed=0, extra_body=VOTE, **where))
    assert again.usage.completion_tokens == reply.usage.completion_tokens


def test_dspy(url: str) -> None:
    dspy = pytest.importorskip("dspy")

    class Bare(dspy.Adapter):  # type: ignore[misc, name-defined]  # found at run time
        """The question as it is: the pocket model reads no instructions."""

        def format(self, signature: Any, demos: Any, inputs: dict[str, str]) -> list[dict[str, str]]:
            return [{"role": "user", "content": inputs["question"]}]

        def parse(self, signature: Any, completion: str) -> dict[str, str]:
            return {"answer": completion.rpartition("answer ")[2]}

    model = dspy.LM("openai/pocket", api_base=url, api_key="none", seed=0, cache=False, extra_body=VOTE)
    with dspy.context(lm=model, adapter=Bare()):
        assert dspy.Predict("question -> answer")(question=QUESTION).answer == ANSWER
    assert model.history[-1]["usage"]["completion_tokens"] > 16 * 30


def test_lm_evaluation_harness(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    # It counts at Amazon that a file was loaded, unless the environment had said no when it was first imported.
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
    rows = [{"question": q.text, "answer": q.answer} for q in itertools.islice(questions("test"), 3)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    last_number = [
        {"function": "regex", "group_select": -1, "regex_pattern": "(-?[0-9]+)"},
        {"function": "take_first"},
    ]
    task = {
        "task": "pocket_endpoint",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "task.jsonl")},
        "test_split": "train",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "temperature": 1.0},
        "filter_list": [{"name": "last-number", "filter": last_number}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    found = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args=f"model=pocket@quality-16,base_url={url}/chat/completions,num_concurrent=3,seed=0",
        tasks=[task],
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=True,
    )
    texts = [sample["resps"][0][0] for sample in found["samples"]["pocket_endpoint"]]
    assert all("answer" in text for text in texts)
    assert found["results"]["pocket_endpoint"]["exact_match,last-number"] >= 2 / 3


# --- the page that shows them ---------------------------------------------------------------------

BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", (ROOT / "docs" / "apps.md").read_text(), re.DOTALL)


def shown(url: str, language: str, *words: str) -> str:
    """The code of the page that has these words, for this server."""
    (code,) = (text for kind, text in BLOCKS if kind == language and all(word in text for word in words))
    return code.replace("http://127.0.0.1:8001/v1", url)  # type: ignore[no-any-return]


@pytest.mark.parametrize("client", ["from openai", "langchain_openai", "litellm"])
def test_what_the_page_shows_works(url: str, client: str) -> None:
    found: dict[str, Any] = {}
    exec(compile(shown(url, "python", client), "docs/apps.md", "exec"), found)
    if client == "from openai":
        exec(compile(shown(url, "python", "stream=True"), "docs/apps.md", "exec"), found)
    if client != "langchain_openai":
        assert found["reply"].choices[0].message.content


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_command_of_the_page_works(url: str) -> None:
    done = subprocess.run(shown(url, "sh", "curl"), shell=True, check=True, capture_output=True, timeout=120)
    assert len(json.loads(done.stdout)["arrol"]["samples"]) == 16


# --- anything that speaks HTTP --------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(url: str) -> None:
    body = {"messages": MESSAGES, "seed": 0, **VOTE}
    command = ["curl", "--silent", "--fail", f"{url}/chat/completions", "--json", json.dumps(body)]
    reply = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
    assert reply["arrol"]["answer"] == ANSWER


def test_a_crowd_that_comes_and_goes_leaves_nothing_behind(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evals.bench.crowd.PATIENCE", 0.5)
    monkeypatch.setattr("evals.bench.crowd.PAUSE", 0.5)
    monkeypatch.setattr("evals.bench.crowd.IDLE_SECONDS", 1.0)
    crowd = Crowd(clients=24, seconds=4.0, warm_seconds=0.0)
    found = asyncio.run(come_and_go(crowd, serving.url, serving.process))
    assert found["error_messages"] == []
    assert found["vanished_requests"] > 0
    assert found["answered_requests"] > 0
    assert (found["left_running"], found["left_waiting"]) == (0.0, 0.0)
    assert found["busy_share_afterwards"] < 0.2
