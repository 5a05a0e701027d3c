"""The server as programs see it: the documented API, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.demo.conftest import ANSWER, QUESTION, Server

pytest.importorskip("gradio", reason="the demo is not installed: pip install 'arrol[demo]'")
import httpx
from gradio_client import Client


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    client = Client(server.url, verbose=False)
    yield client
    client.close()


def ask(client: Client, question: str = QUESTION, **settings: Any) -> list[dict[str, Any]]:
    """All frames of a run."""
    job = client.submit(question=question, **{"n": 8, **settings}, api_name="/ask")
    job.result(timeout=60)
    return list(job.outputs())


def test_ask_is_the_one_endpoint(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/ask"]
    names = [parameter["parameter_name"] for parameter in endpoints["/ask"]["parameters"]]
    assert names == [
        "question", "n", "seed", "consensus", "rule", "keep", "at", "temperature",
        "compare", "rule_b", "keep_b", "at_b", "temperature_b",
    ]  # fmt: skip


def test_ask_streams_every_frame_and_ends_with_the_librarys_vote(server: Server, client: Client) -> None:
    frames = ask(client, n=16)
    assert [frame["update"] for frame in frames] == list(range(len(frames)))
    recording = server.site.recordings.get(frames[-1]["id"])
    assert recording is not None
    for tally, method in zip(frames[-1]["runs"][0]["tally"], ("majority", "deepconf", "quality"), strict=True):
        assert tally["answer"] == server.site.voter.vote(recording.runs[0].traces, method).answer
    assert frames[-1]["runs"][0]["reference"] == ANSWER


def test_users_at_the_same_time_each_get_their_own_answer(server: Server) -> None:
    questions = {f"{i}+2*3-4+5*6-{i}": str(2 * 3 - 4 + 5 * 6) for i in range(2, 8)}

    def user(question: str) -> dict[str, Any]:
        own = Client(server.url, verbose=False)
        try:
            return ask(own, question, rule="none")[-1]
        finally:
            own.close()

    with ThreadPoolExecutor(len(questions)) as users:
        frames = list(users.map(user, questions))
    assert [frame["question"] for frame in frames] == list(questions)
    assert [frame["runs"][0]["reference"] for frame in frames] == list(questions.values())
    assert all(frame["runs"][0]["phase"] == "done" for frame in frames)
    assert not server.site.stops


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"question": "9" * 2001}, "2001 characters"),
        ({"question": "  "}, "empty"),
        ({"question": "<b>hi</b>"}, "<b>hi</b>"),
        ({"at": 255, "n": 2.5}, "whole number"),
        ({"seed": 2**40}, "seed"),
    ],
)
def test_what_cannot_work_is_said_in_plain_text(client: Client, settings: dict[str, Any], says: str) -> None:
    last = ask(client, **settings)[-1]
    assert says in last["message"]
    assert last["runs"] == []


def test_more_traces_than_allowed_are_refused(client: Client) -> None:
    with pytest.raises(Exception, match="64|maximum"):
        ask(client, n=65)


@pytest.mark.parametrize("path", ["/etc/passwd", "README.md", "pyproject.toml", "demo/app.py"])
def test_files_of_the_machine_are_not_served(server: Server, path: str) -> None:
    target = str(Path(path).resolve())
    for address in (f"gradio_api/file={target}", f"file={target}", f"gradio_api/file={path}"):
        assert httpx.get(server.url + address).status_code in (403, 404)


def test_an_unknown_recording_gives_nothing(server: Server) -> None:
    page = httpx.get(server.url + "config").json()
    arena = next(part for part in page["components"] if part["props"].get("elem_id") == "arena")
    for function in ("traces", "picture"):
        body = {"component_id": arena["id"], "fn_name": function, "session_hash": "x", "data": "../../etc/passwd"}
        assert httpx.post(server.url + "gradio_api/component_server", json=body).json() == ""
