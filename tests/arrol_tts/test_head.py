"""QualityHead: files, refusals, arithmetic."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from arrol_tts import HeadError, QualityHead, QualityHeadConfig
from arrol_tts.engine.signals import HeadReader, HeadReading
from arrol_tts.head_config import CONFIG_FILE, WEIGHTS_FILE, Pooling, read_head_config, resolve_head
from arrol_tts.stopping import TraceLog, TraceSpec


@pytest.fixture
def head() -> QualityHead:
    torch.manual_seed(0)
    head = QualityHead(
        QualityHeadConfig(
            base_model="owner/model", hidden_size=8, inner_size=4, positions=[16], calibration=[2.0, -1.0]
        )
    )
    head.mean.normal_()
    head.scale.uniform_(0.5, 2)
    return head


def test_saved_head_is_loaded_bit_for_bit(head: QualityHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path / "new" / "folder")
    again = QualityHead.from_pretrained(tmp_path / "new" / "folder")
    hidden = torch.randn(5, 8)
    assert torch.equal(again(hidden), head(hidden))
    assert again.config == head.config
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [WEIGHTS_FILE, CONFIG_FILE]


def test_score_is_the_calibrated_sigmoid_of_the_mlp(head: QualityHead) -> None:
    hidden = torch.randn(3, 8)
    inner = torch.nn.functional.gelu((hidden - head.mean) * head.scale @ head.inner.weight.T + head.inner.bias)
    logit = (inner @ head.outer.weight.T + head.outer.bias).squeeze(-1)
    torch.testing.assert_close(head(hidden), torch.sigmoid(2.0 * logit - 1.0))
    assert head(torch.randn(2, 3, 8)).shape == (2, 3)


def test_a_head_for_hidden_size_4096_is_under_5_mb(tmp_path: Path) -> None:
    QualityHead(QualityHeadConfig(base_model="m", hidden_size=4096)).save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS_FILE).stat().st_size < 5e6


def test_another_hidden_size_is_refused(head: QualityHead) -> None:
    head.config.check_model(hidden_size=8)
    with pytest.raises(HeadError, match=r"width 8 \(it was trained for owner/model\).*model m has width 16"):
        head.config.check_model(hidden_size=16, model="m")


def test_corrupt_weights_are_refused(head: QualityHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path)
    weights = tmp_path / WEIGHTS_FILE
    whole = weights.read_bytes()
    for broken in (b"", b"not safetensors at all", whole[: len(whole) // 2]):
        weights.write_bytes(broken)
        with pytest.raises(HeadError, match="cannot be read as safetensors"):
            QualityHead.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(HeadError, match="cannot be read as safetensors"):
        QualityHead.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_refused(head: QualityHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path)
    other = QualityHead(QualityHeadConfig(base_model="m", hidden_size=8, inner_size=5))
    other.save_pretrained(tmp_path / "other")
    (tmp_path / WEIGHTS_FILE).write_bytes((tmp_path / "other" / WEIGHTS_FILE).read_bytes())
    with pytest.raises(HeadError, match="does not fit head_config.json"):
        QualityHead.from_pretrained(tmp_path)


def test_weights_that_are_not_finite_are_refused(head: QualityHead, tmp_path: Path) -> None:
    with torch.no_grad():
        head.outer.bias.fill_(float("nan"))
    head.save_pretrained(tmp_path)
    with pytest.raises(HeadError, match="not finite"):
        QualityHead.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": "8"}, "hidden_size is '8'"),
        ({"positions": []}, r"positions is \[\]"),
        ({"positions": [0]}, r"positions is \[0\]"),
        ({"calibration": [1.0]}, r"calibration is \[1.0\]"),
        ({"keep": 0}, "keep is 0"),
        ({"format_version": 99}, "saved in format 99.*upgrade arrol"),
    ],
)
def test_malformed_config_is_refused(
    head: QualityHead, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    head.save_pretrained(tmp_path)
    path = tmp_path / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(HeadError, match=message):
        QualityHead.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_broken_json_is_refused(head: QualityHead, tmp_path: Path, text: str) -> None:
    head.save_pretrained(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(HeadError, match="head_config.json"):
        QualityHead.from_pretrained(tmp_path)


def test_keys_of_later_versions_are_ignored(head: QualityHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path)
    path = tmp_path / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"something_new": 1}))
    assert QualityHead.from_pretrained(tmp_path).config == head.config


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nothing", "nothing", "a/b/c"])
def test_missing_head_is_named(name: str) -> None:
    with pytest.raises(HeadError, match="there is no quality head at"):
        resolve_head(name)


def test_folder_without_a_head_is_named(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="holds no quality head: head_config.json is missing"):
        QualityHead.from_pretrained(tmp_path)


def test_the_pocket_head_names_the_pocket_model(pocket_head: QualityHead) -> None:
    from arrol_tts.pocket import POCKET_HEAD, POCKET_MODEL

    config = read_head_config(POCKET_HEAD)
    assert Path(config.base_model) == POCKET_MODEL
    assert config.hidden_size == pocket_head.mean.shape[0] == 128
    assert config.metrics["synthetic"] is True


def test_push_to_hub_uploads_config_and_weights(head: QualityHead, monkeypatch: pytest.MonkeyPatch) -> None:
    # The hub cannot be reached from tests: its client is replaced, our side of the call is checked.
    import huggingface_hub

    calls: dict[str, Any] = {}

    class FakeHubApi:
        def __init__(self, token: str | None) -> None:
            calls["token"] = token

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            calls["repo"] = (repo_id, private, exist_ok)

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            calls["files"] = sorted(p.name for p in Path(folder_path).iterdir())
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHubApi)
    assert head.push_to_hub("me/head", private=True, token="t") == "https://hub/me/head"
    assert calls == {"token": "t", "repo": ("me/head", True, True), "files": [WEIGHTS_FILE, CONFIG_FILE]}


def test_a_reader_without_pooling_is_the_forward_pass() -> None:
    torch.manual_seed(0)
    head = QualityHead(QualityHeadConfig("m", hidden_size=128, calibration=[2.0, -1.0]))
    hidden = 3 * torch.randn(50, head.config.hidden_size)
    with torch.inference_mode():
        torch.testing.assert_close(head.reader()(hidden)[0], head(hidden), atol=1e-5, rtol=1e-4)


def test_a_score_without_pooling_is_the_same_in_any_company(head: QualityHead) -> None:
    hidden = torch.randn(5, 8)
    torch.testing.assert_close(head(hidden)[3], head(hidden[3]))


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("inner_size", [0, 4])
@pytest.mark.parametrize("pooling", ["mean", "gated"])
def test_rows_read_one_by_one_and_pooled_give_the_forward_pass(
    pooling: Pooling, inner_size: int, stride: int
) -> None:
    torch.manual_seed(0)
    config = QualityHeadConfig(
        "m", hidden_size=8, inner_size=inner_size, pooling=pooling, stride=stride, calibration=[2.0, -1.0]
    )
    head = QualityHead(config)
    head.mean.normal_()
    head.scale.uniform_(0.5, 2)
    hidden = 3 * torch.randn(20, 8)
    with torch.inference_mode():
        weights, values = head.reader()(hidden).tolist()
        scores = head(hidden[::stride]).tolist()
    log = TraceLog(TraceSpec())
    pooled = [log.pool(k, w, v, stride) for k, (w, v) in enumerate(zip(weights, values, strict=True))]
    assert pooled == pytest.approx([scores[k // stride] for k in range(20)], abs=1e-5)


def test_a_head_of_steps_is_the_mean_of_their_probabilities() -> None:
    torch.manual_seed(0)
    config = QualityHeadConfig(
        "m", 8, 4, activation="relu", pooling="steps", pool_after=[7, 9], calibration=[2.0, -1.0]
    )
    head = QualityHead(config)
    hidden = 3 * torch.randn(6, 8)
    tokens = [None, 7, 3, 9, 8, 7]  # the prompt's end, and what was written
    with torch.inference_mode():
        reading = HeadReading.of(head.reader()(hidden).tolist(), HeadReader(head).kind)
        inner = torch.relu(head.inner(hidden)) if head.inner else hidden
        each = torch.sigmoid(2 * head.outer(inner)[:, 0] - 1).tolist()
        forward = head(hidden[[1, 3, 5]]).tolist()
    log = TraceLog(TraceSpec())
    scores = [reading.score(row, row, log, token) for row, token in enumerate(tokens)]
    one, two, three = each[1], (each[1] + each[3]) / 2, (each[1] + each[3] + each[5]) / 3
    assert scores == pytest.approx([0.5, one, one, two, two, three], abs=1e-6)
    assert forward == pytest.approx([one, two, three], abs=1e-6)


def test_a_gated_mean_is_weighted_by_the_gate() -> None:
    head = QualityHead(QualityHeadConfig("m", hidden_size=2, inner_size=0, pooling="gated"))
    with torch.no_grad():  # the first number is the value, the second the logarithm of the gate
        head.outer.weight.copy_(torch.eye(2))
        head.outer.bias.zero_()
    hidden = torch.tensor([[1.0, 0.0], [4.0, math.log(2.0)], [0.0, 100.0]])
    logits = head.logits(hidden)
    assert logits[:2].tolist() == pytest.approx([1.0, (1 + 2 * 4) / 3])
    assert logits[2].item() == pytest.approx((1 + 2 * 4) / (3 + math.exp(8)))  # no gate beyond the limit


def test_a_score_pools_to_a_number_however_large_the_values_are() -> None:
    log = TraceLog(TraceSpec())
    assert log.pool(0, 1.0, -1e9) == pytest.approx(0.0)
    assert log.pool(1, 1.0, 1e10) == 1.0


@pytest.mark.parametrize(
    ("weight", "value"), [(1.0, math.inf), (1.0, -math.inf), (1.0, math.nan), (math.nan, 1.0)]
)
def test_a_row_that_is_no_number_leaves_a_trace_without_scores(weight: float, value: float) -> None:
    log = TraceLog(TraceSpec())
    assert log.pool(0, 1.0, 0.0) == 0.5
    assert math.isnan(log.pool(1, weight, value))
    assert math.isnan(log.pool(2, 1.0, 0.0))


def test_rows_of_no_weight_have_no_score_until_one_has_some() -> None:
    log = TraceLog(TraceSpec())
    assert math.isnan(log.pool(0, 0.0, 3.0))
    assert log.pool(1, 2.0, 0.0) == 0.5


def test_a_head_of_steps_that_comes_after_one_of_another_kind_begins_anew() -> None:
    log = TraceLog(TraceSpec())
    assert log.pool(0, 1.0, 5.0) > 0.99
    assert [log.pool_steps(None), log.pool_steps(0.25), log.pool_steps(0.75)] == [0.5, 0.25, 0.5]


def test_a_head_that_comes_between_two_multiples_of_its_stride_begins_with_the_first_row_it_sees() -> None:
    log = TraceLog(TraceSpec())
    scores = [log.pool(k, 1.0, float(k), stride=4) for k in (6, 7, 8)]
    assert scores == pytest.approx([1 / (1 + math.exp(-k)) for k in (6, 6, 7)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pooling": "median"}, "pooling is 'median'; it must be one of last, mean, gated"),
        ({"pooling": "gated", "stride": 0}, "stride is 0; it must be a positive whole number"),
        ({"stride": 4}, "stride is 4; a head that pools nothing reads every token"),
        ({"inner_size": 0}, "inner_size is 0; it must be a positive whole number"),
        ({"activation": "tanh"}, "activation is 'tanh'; it must be one of gelu, relu"),
        ({"pooling": "steps"}, "pool_after names the tokens that end a step, for pooling 'steps' alone"),
        ({"pooling": "mean", "pool_after": [3]}, "pool_after names the tokens that end a step"),
        ({"pooling": "steps", "pool_after": [-3]}, "pool_after is .-3.; it must list token ids"),
        ({"pooling": "steps", "pool_after": [3], "stride": 2}, "a head of steps reads their ends, all of them"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        QualityHeadConfig("m", 8, **changed)


def test_heads_without_pooling_are_saved_in_the_first_format(head: QualityHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path / "last")
    QualityHead(QualityHeadConfig("m", 8, pooling="gated")).save_pretrained(tmp_path / "gated")
    QualityHead(QualityHeadConfig("m", 8, activation="relu")).save_pretrained(tmp_path / "relu")
    names = ("last", "gated", "relu")
    versions = [json.loads((tmp_path / n / CONFIG_FILE).read_text())["format_version"] for n in names]
    assert versions == [1, 2, 2]


def test_a_folder_whose_weights_changed_is_refused(tmp_path: Path) -> None:
    from arrol_tts.revision import model_revision

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    config = QualityHeadConfig(str(tmp_path), hidden_size=8, base_revision=model_revision(tmp_path))
    config.check_revision()
    (tmp_path / "model.safetensors").write_bytes(bytes(999) + b"\x01")
    with pytest.raises(HeadError, match="has changed since this head was trained.*pass model="):
        config.check_revision()


def test_a_missing_or_unknown_base_model_is_left_to_who_loads_it(tmp_path: Path) -> None:
    QualityHeadConfig(str(tmp_path / "nowhere"), hidden_size=8, base_revision="sha256:0").check_revision()
    QualityHeadConfig("owner/model", hidden_size=8).check_revision()
