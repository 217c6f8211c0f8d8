"""What must be known of the device and the package before anything is measured, as one JSON file.

`python -m benchmarks.gpu_check.probe FILE [--device cpu] [--as-if 9.0]`: in a process of its own,
since neither an import nor a first touch of the device is sure to come back.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import machine, table


def serves(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for these architectures ("9.0", "9.0a", "8.0+PTX") runs on such a device."""
    for arch in archs:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
        if match is None:
            continue
        made_for = (int(match[1]), int(match[2]))
        if match[3]:
            alike = made_for == capability
        else:
            alike = made_for[0] == capability[0] and made_for <= capability
        if alike or (match[4] and not match[3] and made_for <= capability):
            return True
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.probe")
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--as-if", help="the capability of a device that is not there")
    asked = parser.parse_args(arguments)
    found: dict[str, Any] = {"gpu": None, "foreign": None}
    device = "cpu" if asked.as_if else asked.device
    if device == "cuda" and not torch.cuda.is_available():
        found["no_device"] = _no_device()
        table.write_json(asked.file, found)
        return 1
    found |= machine.facts(device)
    found["slug"] = machine.slug(device, 1)
    if asked.as_if:
        found["gpu"] = {"name": "none", "capability": asked.as_if, "cudnn": "not asked"}
    found["unusable"] = "importing it ended the process"  # unless the next lines come to an end
    table.write_json(asked.file, found)
    found["foreign"], found["unusable"] = look_at_package(asked.device, asked.as_if)
    table.write_json(asked.file, found)
    return 0


def _no_device() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "torch.cuda.is_available() is false"


def look_at_package(device: str, as_if: str | None = None) -> tuple[str | None, str | None]:
    """The place of the package where it is not this checkout's, and why its kernels for the device
    can't be used, that there is none for `as_if` aside."""
    try:
        import rnnfast
        from rnnfast import _ext
        from rnnfast._build import record
        from rnnfast.backends import registry
    except Exception as error:  # whatever an import raises
        return None, f"importing rnnfast: {type(error).__name__}: {error}"
    package = Path(rnnfast.__file__).resolve().parent
    if package != machine.ROOT / "rnnfast":
        return str(package), None
    if device == "cpu":
        return None, None
    unusable = _ext.why_no_cuda()
    built = _ext.build_record() or {}
    if unusable is None and built.get("sources") != record.digest(machine.ROOT / "csrc"):
        unusable = "it was built from other sources than csrc has now"
    major, minor = map(int, as_if.split(".")) if as_if else torch.cuda.get_device_capability()
    if unusable is None and not serves(built["archs"], (major, minor)):
        has = ", ".join(built["archs"]) or "no GPU"
        unusable = f"it has kernels for {has}; the device is of {major}.{minor}"
    return None, unusable or (None if as_if else registry.BACKENDS["cuda"].unusable())


if __name__ == "__main__":
    sys.exit(main())
