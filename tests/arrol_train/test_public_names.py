"""What ``import arrol_train`` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import arrol_train


def test_every_public_name_is_there_under_its_own_name() -> None:
    assert arrol_train.__all__ == sorted(arrol_train.__all__, key=lambda name: (name.islower(), name))
    assert set(dir(arrol_train)) == set(arrol_train.__all__) == set(arrol_train._HOMES)
    for name in arrol_train.__all__:
        assert getattr(arrol_train, name).__name__ == name


def test_importing_the_package_loads_neither_torch_nor_a_program() -> None:
    code = "import sys, arrol_train; print([m for m in sys.modules if m == 'numpy' or m.startswith('arrol_t')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "['arrol_train']\n", done.stderr
