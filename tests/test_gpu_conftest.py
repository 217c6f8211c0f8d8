"""What tests/gpu/conftest.py does, seen without a device."""

from __future__ import annotations

from .gpu.conftest import rank


def test_teams_come_first_and_the_longest_last() -> None:
    names = ["test_a[resident-x-T300B9]", "test_b[stepwise]", "test_teams_agree[grid:blocks=3]"]
    assert sorted(names, key=rank) == names[::-1]
