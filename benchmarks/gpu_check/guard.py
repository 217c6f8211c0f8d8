"""A plugin of pytest (`-p benchmarks.gpu_check.guard`): a test has so many seconds, and none runs
on a device that an earlier one has lost.

In both cases the process ends; with pytest-xdist that test has failed, and the others go on in a
new one.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Generator

import pytest

LOST = 70  # the exit status
_stderr = -1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--test-seconds", type=float, default=60, help="a test may take (default 60)")


def pytest_configure() -> None:
    global _stderr
    _stderr = os.dup(2)  # the true one: nothing is captured yet


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    seconds = item.config.getoption("--test-seconds")
    faulthandler.dump_traceback_later(seconds, exit=True, file=_stderr)  # whatever holds the GIL
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Before the failure is reported: what xdist has not heard of, it counts as failed itself."""
    report = yield
    if report.failed and (error := device_error()) is not None:
        # on a line of its own: xdist may not have ended its line of the test before
        text = f"\n{report.longreprtext}\n{item.nodeid}: the device is lost: {error}\n"
        os.write(_stderr, text.encode())
        os._exit(LOST)
    return report


def device_error() -> str | None:
    """What a wait for the device says where an error stays; None where there is none."""
    import torch

    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None
