"""Tests in several processes: functions in a group on gloo, and commands under torchrun."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 300.0
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # docs/distributed.md: for --max-restarts
Scene = Callable[[], None]

needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
needs_torchrun = pytest.mark.skipif(os.name != "posix", reason="torchrun with gloo is for POSIX")
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="who torchrun's processes are: by Linux's /proc"
)


def together(world: int, scenes: Sequence[Scene]) -> None:
    """Every scene, a function of a module, in each of ``world`` processes, which gloo joins.

    All scenes run in one start of the processes, since that costs more than any of them.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(_run, args=(world, port, scenes), nprocs=world)


def _run(rank: int, world: int, port: int, scenes: Sequence[Scene]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    try:
        for scene in scenes:
            try:
                scene()
            except BaseException as error:
                raise AssertionError(f"{scene.__name__}, rank {rank}: {error}") from error
            dist.barrier()
    finally:
        dist.destroy_process_group()


class Torchrun:
    """``torchrun --nproc-per-node 2 ...``, under way; its output goes to files in ``folder``."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "stdout", folder / "stderr"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [*launcher, "--nproc-per-node=2", *arguments],
                cwd=ROOT,
                env={**os.environ, **ONE_THREAD, **OWN_STORE, "PYTHONPATH": str(ROOT)},
                stdout=out,
                stderr=err,
            )

    @property
    def printed(self) -> str:
        return self._out.read_text()

    @property
    def errors(self) -> str:
        """How stderr ends."""
        return self._err.read_text()[-3000:]

    def until(self, what: str, happened: Callable[[], bool]) -> None:
        """Wait; a run that ends before, or takes too long, fails the test."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while not happened():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > end:
                self.stop()
                why = "it ended" if ended else "it hangs"
                pytest.fail(f"waiting for {what}: {why}; stderr ends:\n{self.errors}")
            time.sleep(0.02)

    def wait(self) -> int:
        """The exit status."""
        try:
            return self.process.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.stop()
            pytest.fail(f"torchrun hangs; stderr ends:\n{self.errors}")

    def stop(self) -> None:
        """torchrun ends its processes."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def ranks(self) -> dict[int, int]:
        """The id of the process of each rank that runs now."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # ended, or another user's
                continue
            if parent == self.process.pid:
                found |= {int(v[5:]): int(folder.name) for v in variables if v.startswith(b"RANK=")}
        return found

    def kill(self, rank: int) -> None:
        """kill -9 of one process."""
        os.kill(self.ranks()[rank], signal.SIGKILL)
