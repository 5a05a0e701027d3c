"""Estimates against figures worked out by hand."""

from __future__ import annotations

import pytest

from evals.sampling.estimate import SHAPES, Gpu, ModelShape, estimate, shape_of

SHAPE = ModelShape(parameters=1e9, layers=10, kv_heads=4, head_size=100)  # 2 GB, 16 kB of cache a token
GPU = Gpu(memory=10, bandwidth=1000, compute=100)


def test_an_estimate_follows_its_stated_assumptions() -> None:
    found = estimate(SHAPE, GPU, traces=64, mean_tokens=1000, max_tokens=2000, prompt_tokens=0)
    assert found.tokens == 64_000
    # 64 traces of 500 tokens on average are 0.512 GB of cache: they all fit in 10 x 0.9 - 2 - 2 = 5 GB.
    assert found.running == 64
    # Reading 2.512 GB at 60% of 1000 GB/s takes 4.19 ms, computing 128e9 operations at 40% of 100 TFLOP/s 3.2 ms.
    assert found.tokens_per_second == pytest.approx(64 / (2.512 / 600))
    assert found.hours == pytest.approx(64_000 / found.tokens_per_second / 3600)
    assert found.memory_gb == pytest.approx(2 + 2.512)
    assert found.disk_gb == pytest.approx(64_000 * 12 / 1e9)


def test_more_traces_than_fit_take_turns() -> None:
    found = estimate(SHAPE, GPU, traces=10_000, mean_tokens=10_000, max_tokens=20_000, prompt_tokens=0)
    assert found.running == int(5e9 / (5000 * SHAPE.kv_bytes)) == 62


def test_pruning_adds_a_shorter_pass_and_replicas_divide_the_time() -> None:
    whole = estimate(SHAPE, GPU, traces=1000, mean_tokens=1000, max_tokens=2000)
    both = estimate(SHAPE, GPU, traces=1000, mean_tokens=1000, max_tokens=2000, kept_share=0.5, detection=200)
    assert both.tokens == pytest.approx(whole.tokens * (1 + 0.5 + 0.5 * 0.2))
    two = estimate(SHAPE, GPU, traces=1000, mean_tokens=1000, max_tokens=2000, replicas=2)
    assert two.hours == pytest.approx(whole.hours / 2)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weights take 16 GB .* use more or larger ones"):
        estimate(SHAPES["Qwen/Qwen3-8B"], GPU, traces=1, mean_tokens=10, max_tokens=20)


def test_a_models_shape_comes_from_its_config() -> None:
    from safetensors import safe_open

    from arrol_tts.pocket import POCKET_MODEL

    shape = shape_of(str(POCKET_MODEL))
    counted = 0
    with safe_open(next(POCKET_MODEL.glob("*.safetensors")), "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  it is no dictionary
            counted += weights.get_tensor(name).numel()
    assert shape.parameters == pytest.approx(counted, rel=0.02)
    assert shape_of("Qwen/Qwen3-8B-Base") == SHAPES["Qwen/Qwen3-8B"]
