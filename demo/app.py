"""The page: Gradio's controls around one arena, and what happens when they are used."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from arrol_tts.errors import EngineError, InputError
from arrol_tts.voter import WeightedVoter

from .choices import MAX_QUESTION, RULES, Ask, Choices
from .frames import Frame, Stop, message, play, show
from .live import LiveRunner
from .picture import picture
from .recording import Recording, Recordings, read_recordings
from .views import Evaluation, LiveReliability

FOLDER = Path(__file__).parent
INTRO = """
<h1>Watch traces compete</h1>
<p>One question, many attempts. A small <b>quality head</b> reads along while a language model writes them,
<b>✂ cuts the hopeless ones early</b> and weighs the votes of the rest: more right answers, fewer tokens.</p>
<p class="about">{about}</p>
"""
ASK_FOR_LINK = """
question => {
  if (question && new URLSearchParams(location.search).get("q")) document.querySelector("#ask").click();
}
"""


@dataclass(slots=True)
class Site:
    """What a server shows.

    Args:
        voter: votes over traces; it needs no engine for recordings.
        runner: answers questions; None on a server that only replays.
        recordings: runs and uploads that can be replayed.
        about: one sentence on what can be asked, as plain text.
        examples: questions that are one click away, and whether to compare with a second setting.
        defaults: choices of a fresh page.
        max_traces: limit on a run.
        max_running: runs that are sampled at the same time; the others wait in a queue.
        max_waiting: length of the queue.
        reliability: of the head, over the traces of this server.
        evaluation: the head's last evaluation, if there is one.
    """

    voter: WeightedVoter
    runner: LiveRunner | None = None
    recordings: Recordings = field(default_factory=Recordings)
    about: str = ""
    examples: Sequence[tuple[str, bool]] = ()
    defaults: Choices = field(default_factory=Choices)
    max_traces: int = 64
    max_running: int = 4
    max_waiting: int = 64
    reliability: LiveReliability = field(default_factory=LiveReliability)
    evaluation: Evaluation | None = None
    stops: dict[str, Stop] = field(default_factory=dict)

    def start(self, session: str | None) -> Stop:
        """A stop for a new run of a tab; the run that it may still have is stopped."""
        self.stop(session)
        stop = self.stops[session or ""] = Stop()
        return stop

    def stop(self, session: str | None) -> None:
        """Stop the run of a tab, if it has one."""
        if before := self.stops.pop(session or "", None):
            before.pressed = True

    def ended(self, session: str | None, stop: Stop) -> None:
        """Forget the stop of a run that is over."""
        if self.stops.get(session or "") is stop:
            del self.stops[session or ""]


def build(site: Site) -> gr.Blocks:
    """The page of a site, to be launched with ``launch_options``."""
    page: gr.Blocks
    with gr.Blocks(title="ARRoL: watch traces compete", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.HTML(INTRO.format(about=escape(site.about)), elem_classes="intro")
        arena = gr.HTML(
            message(""),
            html_template='<div class="arena"></div>',
            js_on_load=(FOLDER / "page.js").read_text(),
            server_functions=_saving(site),
            apply_default_css=False,
            elem_id="arena",
            render=False,
        )
        recording = gr.State("")
        with gr.Tabs():
            if site.runner is not None:
                with gr.Tab("Ask"):
                    _ask_tab(page, site, arena, recording)
            with gr.Tab("Replay"):
                _replay_tab(page, site, arena, recording)
            with gr.Tab("How good is the head?"):
                _views_tab(page, site)
        arena.render()  # type: ignore[no-untyped-call]
    page.queue(max_size=site.max_waiting, default_concurrency_limit=8)
    return page


def launch_options() -> dict[str, Any]:
    """Options of ``Blocks.launch`` that belong to the page: its looks, and what a server may not do."""
    return {
        "theme": gr.themes.Soft(
            primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        "css": (FOLDER / "page.css").read_text(),
        "footer_links": ["api"],
        "show_error": False,
        "max_file_size": "20mb",
        "state_session_capacity": 512,
        "ssr_mode": False,
        "share": False,
    }


# --- asking ---------------------------------------------------------------------------------------


def _ask_tab(page: gr.Blocks, site: Site, arena: gr.HTML, recording: gr.State) -> None:
    runner, defaults = site.runner, site.defaults
    assert runner is not None
    with gr.Row(equal_height=True):
        question = gr.Textbox(
            label="Question", max_length=MAX_QUESTION, scale=5, min_width=260, autofocus=True, elem_id="question"
        )
        with gr.Column(scale=1, min_width=130):
            ask = gr.Button("Ask", variant="primary", elem_id="ask")
            stop = gr.Button("Stop", elem_id="stop")
    with gr.Row(elem_id="examples"):
        examples = [
            gr.Button(f"Compare: {text}" if both else text, size="sm", min_width=150)
            for text, both in site.examples
        ]
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        with gr.Row():
            n = gr.Slider(1, site.max_traces, defaults.n, step=1, label="Traces")
            seed = gr.Number(defaults.seed, precision=0, minimum=0, label="Seed")
            consensus = gr.Slider(
                0.5, 1, defaults.consensus, step=0.05, label="Cancel the rest at this share of the vote (1: never)"
            )
        first = _own_controls(defaults, runner.max_tokens)
        compare = gr.Checkbox(False, label="Compare with a second setting, on the same seed")
        with gr.Group(visible=False) as group:
            second = _own_controls(
                Choices(n=defaults.n, rule="none", at=defaults.at, temperature=defaults.temperature),
                runner.max_tokens,
            )
        compare.change(lambda on: gr.Group(visible=on), compare, group, queue=False, api_visibility="private")

    async def answer(
        question: str,
        n: float,
        seed: float,
        consensus: float,
        rule: str,
        keep: float,
        at: float,
        temperature: float,
        compare: bool,
        rule_b: str,
        keep_b: float,
        at_b: float,
        temperature_b: float,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Frame, Any]]:
        """Sample a question, prune early and vote; streams the state of the page until all traces have ended."""
        session = request.session_hash
        stopping = site.start(session)
        try:
            shared: dict[str, Any] = {"n": _whole(n), "seed": _whole(seed), "consensus": consensus}
            choices = [Choices(rule=rule, keep=keep, at=_whole(at), temperature=temperature, **shared)]
            if compare:
                choices.append(
                    Choices(rule=rule_b, keep=keep_b, at=_whole(at_b), temperature=temperature_b, **shared)
                )
            if choices[0].n > site.max_traces:
                raise InputError(f"{choices[0].n} traces are too many: at most {site.max_traces} here")
            async with aclosing(runner.run(Ask(question, tuple(choices)), stopping)) as frames:
                async for frame in frames:
                    yield frame, frame["id"] or gr.skip()
        except (ValueError, EngineError) as error:
            yield message(str(error)), gr.skip()
        finally:
            site.ended(session, stopping)

    inputs = [question, n, seed, consensus, *first, compare, *second]
    asking: dict[str, Any] = {
        "fn": answer,
        "inputs": inputs,
        "outputs": [arena, recording],
        "show_progress": "minimal",
        "show_progress_on": arena,
        "concurrency_limit": site.max_running,
        "concurrency_id": "ask",
        "scroll_to_output": False,
    }
    gr.on([ask.click, question.submit], **asking, api_name="ask")
    for button, example in zip(examples, site.examples, strict=True):
        fill = f"() => {json.dumps(example)}"
        filled = button.click(None, None, [question, compare], js=fill, api_visibility="private")
        filled.then(**asking, api_visibility="private")

    def press(request: gr.Request) -> None:
        site.stop(request.session_hash)

    stop.click(press, queue=False, api_visibility="private")

    def from_link(request: gr.Request) -> list[Any]:
        """The controls as a link has them."""
        try:
            wanted = Ask.parse(request.query_params, defaults)
        except ValueError as error:
            return [message(str(error)), *[gr.skip()] * len(inputs)]
        if wanted is None:
            return [gr.skip()] * (1 + len(inputs))
        own = [[one.rule, one.keep, one.at, one.temperature] for one in wanted.choices]
        second_own = own[1] if len(own) > 1 else [gr.skip()] * len(second)
        a = wanted.choices[0]
        return [gr.skip(), wanted.question, a.n, a.seed, a.consensus, *own[0], len(own) > 1, *second_own]

    linked = page.load(
        from_link, None, [arena, *inputs], queue=False, show_progress="hidden", api_visibility="private"
    )
    linked.success(None, question, js=ASK_FOR_LINK, api_visibility="private")


def _own_controls(defaults: Choices, max_tokens: int) -> list[Any]:
    """Controls of the choices that each of two compared runs has of its own."""
    with gr.Row():
        rule = gr.Dropdown(
            [(words, name) for name, words in RULES.items()], value=defaults.rule, label="Stopping rule"
        )
        keep = gr.Slider(0.05, 1, defaults.keep, step=0.05, label="Share kept (or the bar)")
        at = gr.Slider(1, max_tokens - 1, defaults.at, step=1, label="Detection position, in tokens")
        temperature = gr.Slider(0, 2, defaults.temperature, step=0.1, label="Temperature")
    return [rule, keep, at, temperature]


def _whole(value: float) -> int:
    """A control's number as a whole one.

    Raises:
        InputError: when it is none.
    """
    if not isinstance(value, int | float) or value != value or int(value) != value:
        raise InputError(f"{value!r} is not a whole number")
    return int(value)


# --- replaying ------------------------------------------------------------------------------------


def _replay_tab(page: gr.Blocks, site: Site, arena: gr.HTML, recording: gr.State) -> None:
    gr.Markdown("Scrub through the last run of this tab, or through a trace file as *Save traces* writes it.")
    with gr.Row():
        chosen = gr.Dropdown([], label="Recording", scale=3, elem_id="recording")
        upload = gr.UploadButton("Open a trace file", file_types=[".jsonl", ".json"], scale=1, elem_id="upload")
    with gr.Row(equal_height=True):
        at = gr.Slider(0, 1, 0, step=1, label="Time, in tokens of each trace", scale=4, elem_id="time")
        start = gr.Button("Play", scale=1, elem_id="play")
        end = gr.Button("Stop", scale=1)

    def choose(identity: str) -> tuple[Frame, Any]:
        """Show the end of a recording."""
        if (found := site.recordings.get(identity)) is None:
            return message("This recording is no longer kept: ask again, or open its file."), gr.skip()
        last = found.num_tokens
        try:
            frame = show(found, last, site.voter, identity=identity)
        except ValueError as error:
            return message(f"These traces cannot be voted over: {error}"), gr.skip()
        return frame, gr.Slider(maximum=max(last, 1), value=last)

    def offer(recordings: Sequence[Recording], names: Sequence[str]) -> tuple[Any, Frame, Any]:
        choices = [(found.question[:100], name) for found, name in zip(recordings, names, strict=True)]
        return gr.Dropdown(choices, value=names[0]), *choose(names[0])

    def open_file(path: str) -> tuple[Any, Any, Any]:
        try:
            recordings = read_recordings(Path(path))
        except (ValueError, OSError) as error:
            return gr.skip(), message(str(error).replace(path, "the file")), gr.skip()
        finally:
            Path(path).unlink(missing_ok=True)
        return offer(recordings, site.recordings.add(recordings))

    def after_run(identity: str) -> tuple[Any, Any]:
        """Offer the run that has just ended."""
        if (found := site.recordings.get(identity)) is None:
            return gr.skip(), gr.skip()
        last = found.num_tokens
        choice = gr.Dropdown([(found.question[:100], identity)], value=identity)
        return choice, gr.Slider(maximum=max(last, 1), value=last)

    def scrub(identity: str, tick: float) -> Any:
        found = site.recordings.get(identity)
        return gr.skip() if found is None else show(found, round(tick), site.voter, identity=identity)

    async def run(identity: str, request: gr.Request) -> AsyncIterator[tuple[Frame, Any]]:
        if (found := site.recordings.get(identity)) is None:
            yield message("There is nothing to play yet: ask something, or open a trace file."), gr.skip()
            return
        stopping = site.start(request.session_hash)
        try:
            async for tick, frame in play(found, site.voter, stopping, identity=identity):
                yield frame, tick
        finally:
            site.ended(request.session_hash, stopping)

    def press(request: gr.Request) -> None:
        site.stop(request.session_hash)

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    chosen.input(choose, chosen, [arena, at], **private)
    upload.upload(open_file, upload, [chosen, arena, at], **private)
    recording.change(after_run, recording, [chosen, at], queue=False, **private)
    at.input(scrub, [chosen, at], arena, queue=False, trigger_mode="always_last", **private)
    start.click(run, chosen, [arena, at], **private)
    end.click(press, queue=False, **private)
    if opened := site.recordings.opened:
        names = [f"opened/{number}" for number in range(len(opened))]
        page.load(lambda: offer(opened, names), None, [chosen, arena, at], queue=False, **private)


# --- views ----------------------------------------------------------------------------------------


def _views_tab(page: gr.Blocks, site: Site) -> None:
    def views() -> tuple[str, str, str, str]:
        accuracy = (
            "",
            "This head has not been evaluated here: run `arrol-eval run`, and start the demo beside it.",
        )
        if site.evaluation is not None:
            accuracy = site.evaluation.view()
        return *site.reliability.view(), *accuracy

    refresh = gr.Button("Refresh", size="sm")
    with gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown("### Can its scores be taken at their word?")
            outputs = [gr.HTML(elem_id="reliability", apply_default_css=False), gr.Markdown()]
        with gr.Column(min_width=320):
            gr.Markdown("### Accuracy against tokens")
            outputs += [gr.HTML(elem_id="accuracy", apply_default_css=False), gr.Markdown()]
    gr.on([page.load, refresh.click], views, None, outputs, queue=False, api_visibility="private")


# --- saving ---------------------------------------------------------------------------------------


def _saving(site: Site) -> list[Any]:
    """What the page's own script may call on the server: both need a recording's id."""

    def traces(identity: str) -> str:
        found = site.recordings.get(identity)
        return "" if found is None else found.jsonl()

    def picture_of(identity: str) -> str:
        found = site.recordings.get(identity)
        return "" if found is None else picture(found, site.voter)

    picture_of.__name__ = "picture"
    return [traces, picture_of]
