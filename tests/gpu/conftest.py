"""On a device: what tells most first. (`make gpu-check` adds a limit for each test.)"""

from __future__ import annotations

import pytest


def rank(name: str) -> int:
    """Teams of blocks first, which nothing else has shown to be right; the longest scans last."""
    if "T300" in name:
        return 2
    return 0 if "cluster" in name or "grid" in name or "teams" in name else 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.parent.name == "gpu"]
    ordered = iter(sorted(here, key=lambda item: rank(item.name)))
    items[:] = [next(ordered) if item.path.parent.name == "gpu" else item for item in items]
