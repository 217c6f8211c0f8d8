"""Where a run computes: device, precision, and how many processes share it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Place:
    """A device, a precision and a process among ``processes`` (all with the same data order).

    Every process is given the whole minibatch and takes its share of the rows (`share`). Losses
    are weighted so that gradients, which DistributedDataParallel averages, are those of one process
    with the whole minibatch.
    """

    device: str = "cpu"
    bf16: bool = False
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda was asked for, and this torch sees no GPU")

    @property
    def leads(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def share(self, tensor: Tensor, dim: int = 1) -> Tensor:
        """This process's rows of a minibatch, on the device."""
        if self.processes > 1:
            tensor = tensor.tensor_split(self.processes, dim=dim)[self.rank]
        return tensor if self.device == "cpu" else tensor.to(self.device, non_blocking=True)

    def wrap(self, model: nn.Module) -> nn.Module:
        """``model``, or what averages its gradients over the processes."""
        if self.processes == 1:
            return model
        return nn.parallel.DistributedDataParallel(model)

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to bfloat16 where asked for."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.bf16)

    def forked_streams(self) -> AbstractContextManager[None]:
        """torch's random streams, of the CPU and the device, are put back after the block."""
        return torch.random.fork_rng(devices=self._gpus())

    def streams(self) -> list[Tensor]:
        """The states of torch's random streams."""
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self._gpus())]

    def set_streams(self, states: list[Tensor]) -> None:
        """Go on from what `streams` gave."""
        torch.set_rng_state(states[0])
        for gpu, state in zip(self._gpus(), states[1:], strict=True):
            torch.cuda.set_rng_state(state, gpu)

    def _gpus(self) -> list[int]:
        if torch.device(self.device).type != "cuda":
            return []
        index = torch.device(self.device).index
        return [torch.cuda.current_device() if index is None else index]

    def mean_loss(self, logits: Tensor, targets: Tensor, count: int, ignored: int) -> Tensor:
        """Cross-entropy of this process's share of a minibatch with ``count`` targets in all.

        Its mean over the processes, and that of its gradients, is the whole minibatch's mean.
        """
        rows, wanted = logits.float().flatten(0, 1), targets.flatten()
        if self.processes == 1:
            return F.cross_entropy(rows, wanted, ignore_index=ignored)
        total = F.cross_entropy(rows, wanted, ignore_index=ignored, reduction="sum")
        return total * (self.processes / count)

    def total(self, values: Tensor) -> Tensor:
        """``values`` summed over the processes."""
        if self.processes > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process."""
        if self.processes == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=self.device)))

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, by rank."""
        if self.processes == 1:
            return [value]
        found: list[Any] = [None] * self.processes
        dist.all_gather_object(found, value)
        return found


@contextmanager
def place_of(device: str = "cpu", bf16: bool = False) -> Iterator[Place]:
    """The place of this process; joins the others where ``torchrun`` started it.

    Processes that the caller has joined already stay joined.

    Raises:
        ValueError: CUDA is asked for and there is none.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Place(device, bf16)
        return
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    place = Place(device, bf16, rank, processes)
    if dist.is_initialized():
        yield place
        return
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield place
    finally:
        dist.destroy_process_group()
