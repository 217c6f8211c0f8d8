"""What tests/gpu/conftest.py does, and what cost.py takes for a test, seen without a device."""

from __future__ import annotations

import importlib

import pytest

from .gpu.conftest import rank


def test_teams_come_first_and_the_longest_last() -> None:
    names = ["test_a[resident-x-T300B9]", "test_b[stepwise]", "test_teams_agree[grid:blocks=3]"]
    assert sorted(names, key=rank) == names[::-1]


def test_every_stand_in_is_for_a_test_that_there_is() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from .gpu.cost import STAND_INS

    for name in STAND_INS:
        file, function = name.split(".")
        assert hasattr(importlib.import_module(f"tests.gpu.{file}"), function), name
