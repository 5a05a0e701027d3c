"""The page in a real browser: headless Chromium, driven by Playwright, on the pocket model in real vLLM.

Screenshots are left in ``build/screenshots``.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from arrol_tts.recorded import read_traces
from arrol_tts.voter import WeightedVoter
from demo.endpoint import Endpoint
from demo.recording import Recordings
from demo.request import Served
from tests.demo.conftest import ANSWER, QUESTION, Server, hold, page_of

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine
    from demo.live import LiveRunner

pytest.importorskip("playwright", reason="Playwright is not installed: pip install 'arrol[dev]'")
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.paths import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no Chromium: apt-get install chromium", allow_module_level=True)

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
SCREENSHOTS = ROOT / "build" / "screenshots"
HOSTILE = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'
LONG = {"n": 64, "rule": "none", "temperature": 2, "compare": 1, "rule_b": "none", "temperature_b": 2}
"""Choices of a run that takes some seconds: hot samples ramble to the token limit."""
OpenPage = Callable[..., Page]


# Not for the whole session: Playwright keeps an event loop running in this thread, and other tests start one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, server: Server) -> Iterator[OpenPage]:
    """Opens pages; afterwards none of them may have logged an error."""
    contexts, errors = [], []

    def open_page(query: dict[str, Any] | None = None, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url + ("?" + urlencode(query) if query else ""))
        page.wait_for_selector("#ask")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def long_runs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose traces may not end early, and are longer than usual: a busy machine can end them."""
    monkeypatch.setattr(server.site.runner, "max_tokens", 480)
    assert server.site.voter.config is not None
    monkeypatch.setitem(server.site.voter.config.sampling, "min_tokens", 470)


def wait_for_end(page: Page) -> None:
    """Until every run is done, or was stopped."""
    page.wait_for_function(
        "() => { const now = document.querySelector('.arena')?.dataset.phase;"
        " return now && now.split(' ').every(one => one === 'done' || one === 'stopped') }",
        timeout=120_000,
    )


def picture(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def statuses(page: Page) -> list[str]:
    found: list[str] = page.eval_on_selector_all(".card", "cards => cards.map(card => card.dataset.status)")
    return found


def saved_traces(page: Page, tmp_path: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save traces").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_ask_and_watch_traces_being_pruned(
    open_page: OpenPage, vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page()
    growing, pruned = hold(monkeypatch, vllm_engine, 20, 90)  # before and after all have written 33 tokens
    page.locator("#examples button").nth(1).click()
    page.wait_for_selector(".card[data-status=running]")
    assert "pruned" not in statuses(page)
    growing.set()
    page.wait_for_selector(".arena:has(.card[data-status=pruned]) .card[data-status=running]")
    pruned.set()
    wait_for_end(page)
    last = statuses(page)
    assert len(last) == 32
    assert last.count("pruned") == 16
    assert last.count("right") + last.count("wrong") == 16
    expect(page.locator(".card[data-status=pruned] .end").first).to_contain_text("token 32")
    expect(page.locator("[data-meter=saved] dd")).to_contain_text("%")
    picture(page, "light")


def test_the_tally_equals_the_librarys_vote_on_the_saved_traces(
    open_page: OpenPage, server: Server, tmp_path: Path
) -> None:
    page = open_page({"q": QUESTION, "n": 24})
    wait_for_end(page)
    traces = list(read_traces(saved_traces(page, tmp_path)))
    assert len(traces) == 24
    for name, method in {"Majority": "majority", "DeepConf": "deepconf", "Quality head": "quality"}.items():
        result = server.site.voter.vote(traces, method)
        box = page.locator(f'.vote[data-method="{name}"]')
        verdict = "✓ right" if result.answer == ANSWER else "✗ wrong"
        expect(box.locator("h4 .answer")).to_have_text(f"{result.answer} {verdict}")
        shown = [re.findall(r"\d+(?= vote)", text)[0] for text in box.locator(".weight").all_inner_texts()]
        assert [int(votes) for votes in shown] == [row.votes for row in result.table[:6]]


def test_two_settings_side_by_side(open_page: OpenPage) -> None:
    page = open_page()
    page.locator("#examples button").first.click()
    wait_for_end(page)
    expect(page.locator(".run")).to_have_count(2)
    tokens = [int(text.replace(",", "")) for text in page.locator("[data-meter=tokens] dd").all_inner_texts()]
    assert tokens[0] < tokens[1]
    expect(page.locator(".run").nth(1).locator(".label")).to_contain_text("nothing pruned")
    picture(page, "compare")


def answer_of(note: str, endpoint: str) -> str:
    """What the last command of a note is answered, sent to an endpoint that runs."""
    command = shlex.split(note.splitlines()[-1].replace("http://127.0.0.1:8001", endpoint))
    done = subprocess.run([*command, "--silent", "--fail"], check=True, capture_output=True, timeout=120)
    return str(json.loads(done.stdout)["arrol"]["answer"])


def shown_answer(page: Page) -> str:
    """The quality head's, as the page shows it."""
    return page.locator('.vote[data-method="Quality head"] h4 .answer').inner_text().split()[0]


def test_the_note_holds_the_request_that_an_app_sends_for_the_same_answer(
    open_page: OpenPage, endpoint: str
) -> None:
    page = open_page({"q": QUESTION, "n": 16, "seed": 4})
    wait_for_end(page)
    note = page.locator(".request")
    note.locator("summary").click()
    words = note.locator("pre").inner_text()
    assert words.startswith("arrol-serve pocket\ncurl http://127.0.0.1:8001/v1/chat/completions --json ")
    assert answer_of(words, endpoint) == shown_answer(page)
    picture(page, "request")


def test_a_rule_that_an_endpoint_lacks_has_no_note(open_page: OpenPage) -> None:
    page = open_page({"q": QUESTION, "n": 4, "rule": "bar"})
    wait_for_end(page)
    expect(page.locator(".request")).to_be_hidden()


def test_the_page_on_an_endpoint(
    browser: Browser, runner: LiveRunner, endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = Endpoint.find(endpoint)
    assert found is not None
    remote = replace(
        runner,
        voter=WeightedVoter(config=runner.voter.config),  # which has no engine
        recordings=Recordings(),
        endpoint=found,
        served=Served(found.url, found.model),
    )
    with page_of(remote, tmp_path_factory) as server, browser.new_context() as context:
        page = context.new_page()
        page.goto(server.url + "?" + urlencode({"q": QUESTION, "n": 32}))
        wait_for_end(page)
        last = statuses(page)
        assert (len(last), last.count("pruned")) == (32, 16)
        assert last.count("right") + last.count("wrong") == 16
        expect(page.locator(".card[data-status=right] .text").first).to_contain_text("answer 13")
        expect(page.locator(".card[data-status=pruned] .end").first).to_contain_text("token 32")
        expect(page.locator(".scores svg")).to_be_visible()
        assert shown_answer(page) == ANSWER
        note = page.locator(".request")
        note.locator("summary").click()
        assert answer_of(note.locator("pre").inner_text(), endpoint) == ANSWER
        picture(page, "endpoint")


@pytest.mark.usefixtures("long_runs")
def test_stop(open_page: OpenPage) -> None:
    page = open_page({"q": QUESTION, **LONG})
    # At once: on a busy machine Playwright may take longer to click than the run takes.
    page.wait_for_function(
        "() => document.querySelector('.card[data-status=running]')"
        " && (document.querySelector('#stop').click(), true)"
    )
    wait_for_end(page)
    assert "cancelled" in statuses(page)
    # On a busy machine one of the two may have ended just before.
    expect(page.locator(".note", has_text="stopped by you").first).to_be_visible()


def test_a_link_brings_settings_and_result_back(open_page: OpenPage) -> None:
    first = open_page({"q": QUESTION, "n": 6, "seed": 3, "at": 24, "keep": 0.35, "compare": 1, "rule_b": "none"})
    wait_for_end(first)
    second = open_page()
    second.goto(first.url)
    wait_for_end(second)
    assert first.url == second.url
    assert first.locator(".runs .end").all_inner_texts() == second.locator(".runs .end").all_inner_texts()
    assert (
        first.locator(".label").first.inner_text()
        == "6 traces, keep the best 35% at token 24, temperature 1, seed 3"
    )
    expect(second.locator("#question textarea")).to_have_value(QUESTION)


def test_replay_scrubs_the_last_run_by_keyboard(open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    # Few frames that stay for long: the page is to show one of them, however busy the machine is.
    monkeypatch.setattr("demo.frames.PLAY_FRAMES", 6)
    monkeypatch.setattr("demo.frames.UPDATE_SECONDS", 0.5)
    page = open_page({"q": QUESTION, "n": 8})
    wait_for_end(page)
    spent = page.locator("[data-meter=tokens] dd")
    whole = spent.inner_text()
    page.get_by_role("tab", name="Replay").click()
    slider = page.locator("#time input[type=range]")
    slider.focus()
    page.keyboard.press("Home")
    expect(spent).to_have_text("0")
    assert set(statuses(page)) == {"waiting"}
    page.keyboard.press("End")
    expect(spent).to_have_text(whole)
    page.locator("#play").click()
    page.wait_for_selector(".card[data-status=running]")
    wait_for_end(page)
    expect(spent).to_have_text(whole)
    picture(page, "replay")


def test_a_saved_file_is_replayed_and_its_text_stays_text(open_page: OpenPage, tmp_path: Path) -> None:
    rows = [
        {"question_id": HOSTILE, "text": HOSTILE, "answer": HOSTILE, "num_tokens": 40, "scores": {"20": 0.7}},
        {"question_id": HOSTILE, "text": HOSTILE, "num_tokens": 21, "finish_reason": "pruned", "detail": HOSTILE},
    ]
    file = tmp_path / "hostile.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    page = open_page()
    page.get_by_role("tab", name="Replay").click()
    page.locator("#upload input[type=file], input#upload, input[type=file]").first.set_input_files(file)
    wait_for_end(page)
    expect(page.locator(".asked span")).to_have_text(HOSTILE)
    expect(page.locator(".card .text").first).to_have_text(HOSTILE)
    expect(page.locator(".card .end").nth(1)).to_have_text(HOSTILE)
    assert page.locator(".arena img, .arena script").count() == 0
    page.get_by_role("button", name="Save picture").click()
    page.wait_for_timeout(300)
    assert page.title() != "owned"


def test_script_in_a_question_is_shown_as_text(open_page: OpenPage) -> None:
    page = open_page()
    page.locator("#question textarea").fill(HOSTILE)
    page.keyboard.press("Enter")
    expect(page.locator(".arena .message")).to_contain_text("<script>document.title=")
    assert page.locator(".arena img, .arena script").count() == 0
    page.goto(page.url + "?" + urlencode({"q": HOSTILE, "rule": HOSTILE}))
    expect(page.locator(".arena .message")).to_contain_text("<img src=x")
    page.wait_for_timeout(300)
    assert page.title() != "owned"


@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling(open_page: OpenPage) -> None:
    page = open_page({"q": QUESTION, "n": 8, "compare": 1}, viewport={"width": 390, "height": 844}, has_touch=True)
    wait_for_end(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator(".card").last.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 390
    picture(page, "phone")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(open_page: OpenPage, scheme: str) -> None:
    page = open_page({"q": QUESTION, "n": 16}, color_scheme=scheme)
    wait_for_end(page)
    page.wait_for_timeout(700)  # the pruned ones have faded
    picture(page, scheme + "-small")
    for selector in (".card .status", ".card .text", ".vote h4 .answer", ".meters dd", ".label", ".note"):
        assert page.eval_on_selector(selector, CONTRAST) >= 4.5, selector


CONTRAST = """node => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const clear = node => (rgb(getComputedStyle(node).backgroundColor)[3] ?? 1) === 0;
  let back = node;
  while (back.parentElement && clear(back)) back = back.parentElement;
  const pair = [light(rgb(getComputedStyle(node).color)), light(rgb(getComputedStyle(back).backgroundColor))];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}"""


def test_everything_works_from_the_keyboard(open_page: OpenPage) -> None:
    page = open_page()
    page.locator("#question textarea").focus()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    wait_for_end(page)
    card = page.locator(".card").first
    card.focus()
    page.keyboard.press("Enter")
    expect(card).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.card')[1]")


@pytest.mark.slow
def test_the_picture_of_a_result_is_a_png(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page({"q": QUESTION, "n": 8})
    wait_for_end(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / "saved-picture.png"
    download.value.save_as(path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


@pytest.mark.slow
def test_two_tabs_at_once_each_show_their_own_question(open_page: OpenPage) -> None:
    questions = [QUESTION, "7+9*8-3-3*8-6-2"]
    tabs = [open_page() for _ in questions]
    for tab, question in zip(tabs, questions, strict=True):
        tab.locator("#question textarea").fill(question)
    for tab in tabs:
        tab.locator("#ask").click()
    for tab, question in zip(tabs, questions, strict=True):
        wait_for_end(tab)
        expect(tab.locator(".asked span")).to_have_text(question)
        expect(tab.locator(".card")).to_have_count(32)


@pytest.mark.usefixtures("long_runs")
def test_closing_the_tab_cancels_its_run(open_page: OpenPage, server: Server) -> None:
    recorded = server.site.recordings.added
    page = open_page({"q": QUESTION, **LONG})
    page.wait_for_selector(".card[data-status=running]")
    page.context.close()
    until = time.monotonic() + 30
    while server.site.stops and time.monotonic() < until:
        time.sleep(0.02)
    assert not server.site.stops
    assert server.site.recordings.added == recorded


def test_the_heads_views(open_page: OpenPage) -> None:
    page = open_page({"q": QUESTION, "n": 8})
    wait_for_end(page)
    page.get_by_role("tab", name="How good is the head?").click()
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator("#reliability svg.chart")).to_be_visible()
    expect(page.locator("#accuracy svg.chart")).to_be_visible()
    picture(page, "views")
