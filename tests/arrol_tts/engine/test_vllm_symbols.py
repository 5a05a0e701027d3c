"""What the plug-in uses of vLLM's insides is listed in one place, and a change of it is seen."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import arrol_tts.engine
from tests.arrol_tts.engine.vllm_symbols import differences, installed, interface, names

USED = {"m": "Base: step field kept"}
SOURCE = """
class Base:
    field: int
    def __init__(self):
        self.kept, self.other = 1, 2
    def step(self, x, y=1): ...
"""


def changes(old: str, new: str) -> list[str]:
    return differences({"m": SOURCE}.__getitem__, {"m": SOURCE.replace(old, new)}.__getitem__, USED)


def test_a_release_without_changes_has_no_differences() -> None:
    assert changes("y=1", "y=1") == []


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("y=1", "z=1", "m Base.step: def(self, x, y=1) -> def(self, x, z=1)"),
        ("def step", "def walk", "m Base.step: def(self, x, y=1) -> missing"),
        ("field: int", "field: str", "m Base.field: field: int -> field: str"),
        ("self.kept", "self.lost", "m Base.kept: attribute -> missing"),
        (
            "    def step",
            "    @abstractmethod\n    def g(self): ...\n    def step",
            "m Base: class -> class with abstract g",
        ),
    ],
)
def test_a_change_of_what_is_used_is_named(old: str, new: str, line: str) -> None:
    assert changes(old, new) == [line]


def test_everything_listed_is_in_the_installed_vllm() -> None:
    pytest.importorskip("vllm")
    assert [
        f"{module} {name}" for module, name in names() if interface(installed, module, name) == "missing"
    ] == []


def test_everything_that_the_plugin_checks_for_or_imports_of_v1_is_listed() -> None:
    listed = {part for _, name in names() for part in name.split(".")}
    used = set()
    for path in Path(arrol_tts.engine.__file__ or "").parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm.v1"):
                used |= {alias.name for alias in node.names}
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                used |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    assert {"AsyncScheduler", "_free_request", "logits_indices"} <= used
    assert used <= listed
