"""Speed and load of the demo, as a browser and its users see them: ``python -m evals.bench.demo``.

Starts ``arrol-demo`` with the pocket model (synthetic), opens it in headless Chromium, then lets 20 users ask
one question after the other through Gradio's API: two minutes to warm up, then two that are measured. Figures:

- ``first_paint_seconds``: navigation to the first frame that shows the question box, in a fresh browser profile.
- ``first_token_seconds``: click on Ask to the first frame that shows a token, with a warm engine.
- ``updates_per_second``, ``longest_gap_seconds``, ``longest_task_seconds``: updates of the page with 32 traces
  from the first token to the end, the longest time without one, and the longest time the page was busy.
- ``users_*``: runs of each user, waiting times, lost updates, errors, memory of the server.
"""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arrol_tts.pocket import questions

from . import write_result

PORT = 7890
URL = f"http://127.0.0.1:{PORT}/"
SEED = 0
REPEATS = 5
USERS, SECONDS = 20, 120
WARM = 120
"""Seconds of load before that, and memory is compared from here: kernels are compiled and kept for the batch sizes
that come up, up to a number, and the recordings that the server keeps fill up.
"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]

WATCH = """
window.bench = {paint: null, tasks: [], updates: [], token: null};
new PerformanceObserver(list => list.getEntries().forEach(task => bench.tasks.push(task.duration)))
  .observe({type: "longtask"});
(function waitForPage() {
  if (!document.querySelector("#question textarea")) return requestAnimationFrame(waitForPage);
  requestAnimationFrame(() => { bench.paint = performance.now(); });
})();
window.watchArena = () => {
  bench.updates = []; bench.tasks = []; bench.token = null; bench.asked = performance.now();
  const arena = document.querySelector(".arena");
  new MutationObserver(() => {
    const now = performance.now();
    bench.updates.push(now);
    const tokens = [...document.querySelectorAll(".card .tokens")];
    const written = tokens.some(node => !node.textContent.startsWith("0 "));
    if (bench.token === null && written) requestAnimationFrame(() => { bench.token ??= performance.now(); });
  }).observe(arena, {attributeFilter: ["data-update"]});
};
"""


@contextmanager
def demo() -> Iterator[subprocess.Popen[bytes]]:
    """The demo with its model loaded."""
    command = [str(Path(sys.executable).parent / "arrol-demo"), "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        import httpx

        until = time.monotonic() + 120
        while True:
            try:
                httpx.get(URL)
                break
            except httpx.TransportError:
                if server.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{' '.join(command)} does not answer") from None
                time.sleep(0.2)
        user = _client()
        _ask(user, next(questions("test", SEED)).text, 0)  # waits for the model
        user.close()
        yield server
    finally:
        server.terminate()
        server.wait(30)


def _client() -> Any:
    from gradio_client import Client

    return Client(URL, verbose=False)


def _ask(user: Any, question: str, seed: int) -> dict[str, Any]:
    """One run of one user: what came, and when."""
    began = time.monotonic()
    job = user.submit(question=question, seed=seed, api_name="/ask")
    first, numbers, frame = 0.0, [], {}
    for frame in job:
        first = first or time.monotonic() - began
        numbers.append(frame["update"])
    (run,) = frame["runs"]
    ended = run["counts"]["finished"] + run["counts"]["pruned"]
    return {
        "waited": first,
        "seconds": time.monotonic() - began,
        "updates": len(numbers),
        "lost": numbers[-1] + 1 - len(numbers),
        "whole": bool(frame["id"]) and ended == 32 and bool(run["tally"]),
    }


def bench_browser() -> dict[str, Any]:
    """Paint, first token and updates in headless Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise RuntimeError("there is no Chromium: apt-get install chromium")
    paints, tokens, rates, gaps, tasks = [], [], [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for question in itertools.islice(questions("test", SEED), REPEATS):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            context.add_init_script(WATCH)
            page = context.new_page()
            page.goto(URL)
            page.wait_for_function("bench.paint !== null")
            paints.append(page.evaluate("bench.paint") / 1000)
            page.wait_for_timeout(1000)
            page.locator("#question textarea").fill(question.text)
            page.evaluate("watchArena()")
            page.locator("#ask").click()
            page.wait_for_function("document.querySelector('.arena').dataset.phase === 'done'", timeout=60_000)
            bench = page.evaluate("bench")
            tokens.append((bench["token"] - bench["asked"]) / 1000)
            times = [t / 1000 for t in bench["updates"] if t >= bench["token"]]
            rates.append((len(times) - 1) / (times[-1] - times[0]))
            gaps.append(max(b - a for a, b in itertools.pairwise(times)))
            tasks.append(max([duration / 1000 for duration in bench["tasks"]], default=0.0))
            context.close()
        browser.close()
    return {
        "first_paint_seconds": statistics.median(paints),
        "first_paint_seconds_worst": max(paints),
        "first_token_seconds": statistics.median(tokens),
        "first_token_seconds_worst": max(tokens),
        "updates_per_second": statistics.median(rates),
        "updates_per_second_worst": min(rates),
        "longest_gap_seconds": max(gaps),
        "longest_task_seconds": max(tasks),
    }


def bench_users(server: int) -> dict[str, Any]:
    """Twenty users at the same time."""
    began = time.monotonic()
    until = began + WARM + SECONDS
    stream = questions("test", SEED + 1)
    asked = [next(stream).text for _ in range(64)]
    errors: list[str] = []

    def use(number: int) -> list[dict[str, Any]]:
        runs = []
        user = _client()
        for turn in itertools.count():
            if time.monotonic() >= until:
                break
            try:
                run = _ask(user, asked[(number + turn) % len(asked)], turn)
                if time.monotonic() >= began + WARM:
                    runs.append(run)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
        user.close()
        return runs

    memory: list[tuple[float, float]] = []
    with ThreadPoolExecutor(USERS) as pool:
        users = [pool.submit(use, number) for number in range(USERS)]
        while time.monotonic() < until:
            memory.append((time.monotonic() - began, resident_mib(server)))
            time.sleep(2)
        runs = [user.result() for user in users]
    every = [run for user in runs for run in user]
    counts = [len(user) for user in runs]
    settled = [mib for seconds, mib in memory if seconds >= WARM]
    third = len(settled) // 3
    return {
        "users": USERS,
        "users_seconds": SECONDS,
        "users_runs": len(every),
        "users_errors": len(errors),
        "users_error_messages": sorted(set(errors)),
        "users_lost_updates": sum(run["lost"] for run in every),
        "users_broken_runs": sum(not run["whole"] for run in every),
        "users_updates": sum(run["updates"] for run in every),
        "users_runs_of_each": {"fewest": min(counts), "most": max(counts)},
        "users_fairness_jain": sum(counts) ** 2 / (USERS * sum(count**2 for count in counts)),
        "users_wait_seconds": {
            "median": statistics.median(run["waited"] for run in every),
            "longest": max(run["waited"] for run in every),
        },
        "users_run_seconds": statistics.median(run["seconds"] - run["waited"] for run in every),
        "memory_mib_by_time": [
            [round(seconds), round(mib)] for seconds, mib in memory[:: max(1, len(memory) // 12)]
        ],
        "memory_growth_mib": statistics.median(settled[-third:]) - statistics.median(settled[:third]),
    }


def resident_mib(process: int) -> float:
    """Memory of a process and of those it started, without what they share counted twice."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _descends(int(entry.name), process):
            try:
                lines = (entry / "smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total


def _descends(process: int, ancestor: int) -> bool:
    while process > 1:
        if process == ancestor:
            return True
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def main() -> None:
    """Measure, and write ``evals/results/demo.json``."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with demo() as server:
        figures = bench_browser()
        print(figures, flush=True)
        figures |= bench_users(server.pid)
    for name, value in figures.items():
        print(f"{name:28} {value}")
    print(write_result("demo", {"synthetic": True, **figures}, seeds=[SEED]))


if __name__ == "__main__":
    main()
