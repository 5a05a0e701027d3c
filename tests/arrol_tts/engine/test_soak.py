"""What only shows after a while: memory, KV blocks and processes that are not given back."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arrol_tts import KeepShare, Question, Sampling, TraceSpec
from arrol_tts.pocket import questions

if TYPE_CHECKING:
    from arrol_tts.engine.vllm_engine import VLLMEngine

pytest.importorskip("vllm")

SPEC = TraceSpec(score_finish=True, confidence=True, rules=(KeepShare(12, 0.5),))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_ten_thousand_pruned_requests_keep_memory_constant_and_lose_no_block(vllm_engine: VLLMEngine) -> None:
    scheduler = vllm_engine._loop.engine.engine_core.engine_core.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    texts = itertools.cycle([q.text for q in itertools.islice(questions("test"), 50)])
    sampling = Sampling(n=20, max_tokens=32)
    pruned, resident = 0, []
    for _ in range(40):
        asked = [Question(f"q{i}", next(texts)) for i in range(25)]
        pruned += sum(t.finish_reason == "pruned" for t in vllm_engine.sample(asked, sampling, SPEC))
        resident.append(resident_bytes())
        assert pool.get_num_free_blocks() == free
        assert (scheduler.requests, scheduler._monitor.logs, scheduler._monitor._groups) == ({}, {}, {})
        assert not vllm_engine._loop._listeners
    assert pruned == 10_000
    # 7,500 pruned requests after the first quarter may not leave as much as 1 KiB each behind.
    assert resident[-1] - resident[9] < 7_500 * 1024


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_engines_one_after_the_other_leave_no_process_behind() -> None:
    """With the engine core in a process of its own, as on GPUs."""
    script = """
        import multiprocessing, time

        import psutil

        from arrol_tts import KeepShare, Question, Sampling, TraceSpec
        from arrol_tts.engine.vllm_engine import VLLMEngine
        from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL

        def children():
            multiprocessing.active_children()  # takes leave of those that have ended
            return psutil.Process().children()

        if __name__ == "__main__":
            first = None
            for i in range(20):
                engine = VLLMEngine(POCKET_MODEL, head=POCKET_HEAD, top_k=5, dtype="float32", max_model_len=128,
                                    max_num_seqs=8, in_process=False)
                assert len(children()) >= 1
                spec = TraceSpec(rules=(KeepShare(8, 0.5),))
                traces = list(engine.sample([Question("q", "2+3*4-5")], Sampling(n=4, max_tokens=40), spec))
                assert sum(trace.finish_reason == "pruned" for trace in traces) == 2
                engine.close()
                deadline = time.monotonic() + 60
                # multiprocessing's resource tracker stays for the life of the program.
                while len(left := children()) > 1:
                    assert time.monotonic() < deadline, f"engine {i} left {left}"
                    time.sleep(0.1)
                print(i, flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "19"
