"""The page on architecture names files, classes and functions that are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.paths import ROOT

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PATHS = re.findall(r"`((?:arrol_tts|arrol_train|evals|demo)/[\w/.]*)`", PAGE)
NAMED = re.findall(r"`((?:arrol_tts|arrol_train|evals|demo)/[\w/]+\.py)`:\s+`([\w.]+)`", PAGE)


def defined(tree: ast.Module) -> set[str]:
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, FUNCTIONS)}
    return names


def test_the_page_names_the_whole_way() -> None:
    assert len(NAMED) >= 20


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_the_page_names_is_defined_there(file: str, name: str) -> None:
    assert name in defined(ast.parse((ROOT / file).read_text()))


@pytest.mark.parametrize("path", sorted(set(PATHS)))
def test_every_path_of_the_page_exists(path: str) -> None:
    assert (ROOT / path).exists()
