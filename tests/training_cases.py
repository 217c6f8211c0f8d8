"""Training as people do it on a GPU: GradScaler and autocast, a whole step as one CUDA graph, DDP
beside an all-reduce, two streams. For the backend ``cuda`` on a device; the twins on the CPU have
the same steps by the backends of the CPU, or by ``simt``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import rnnfast

T, B, I, H = 6, 5, 8, 24
KINDS: dict[str, tuple[type, type]] = {
    "lstm": (rnnfast.LSTM, nn.LSTM),
    "gru": (rnnfast.GRU, nn.GRU),
    "rnn_tanh": (rnnfast.RNN, nn.RNN),
}


class Model(nn.Module):
    """A recurrent layer and a linear one."""

    def __init__(self, kind: type, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = kind(I, H, num_layers=2, device=device, dtype=dtype)
        self.out = nn.Linear(H, 3, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0])


def batches(device: str, dtype: torch.dtype, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    for _ in range(count):
        x, y = torch.randn(T, B, I, generator=g), torch.randn(T, B, 3, generator=g)
        yield x.to(device, dtype), y.to(device, dtype)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x).float() - y.float()).square().mean()


def scaled_training(
    kind: type, device: str, low: torch.dtype | None, overflow_at: int = -1, steps: int = 6
) -> tuple[dict[str, Tensor], list[float]]:
    """Parameters after ``steps`` steps under autocast to ``low`` (None: without) with a GradScaler,
    and its scales; at step ``overflow_at`` the loss is infinite."""
    model = Model(kind, device, torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**12, growth_interval=3)
    scales = []
    for step, (x, y) in enumerate(batches(device, torch.float32, steps)):
        optimizer.zero_grad()
        with torch.autocast(device, low, enabled=low is not None):
            loss = loss_of(model, x, y)
        if step == overflow_at:
            loss = loss * torch.inf
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        rnnfast.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return {n: p.detach() for n, p in model.named_parameters()}, scales


def eager_steps(step: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], None]:
    return step


def captured_steps(step: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], None]:
    """``step`` as one CUDA graph: its tensors are static, and copied into."""
    x, y = next(batches("cuda", torch.float32, 1))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # torch's own rule: warm up on a side stream
            step(x, y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(x, y)

    def replay(new_x: Tensor, new_y: Tensor) -> None:
        x.copy_(new_x)
        y.copy_(new_y)
        graph.replay()

    return replay


def whole_steps(kind: type, device: str, way: Any, steps: int = 4) -> dict[str, Tensor]:
    """Parameters after whole training steps (forward, backward, clipping, optimiser), each made by
    ``way`` of a function; what its warm-up changed is undone before the first."""
    model = Model(kind, device, torch.float32)
    initial = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=False)
        loss_of(model, x, y).backward()
        rnnfast.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    run = way(step)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial[name])
    for x, y in batches(device, torch.float32, steps):
        run(x, y)
    return {n: p.detach() for n, p in model.named_parameters()}


def distributed_steps(rank: int, world: int, device: str, store: str, kind: type) -> list[Tensor]:
    """Gradients of a DDP model of rank ``rank``, each on its own batch; nccl on GPUs, gloo else."""
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
    )
    try:
        model = nn.parallel.DistributedDataParallel(Model(kind, device, torch.float32))
        for number, (x, y) in enumerate(batches(device, torch.float32, world)):
            if number == rank:
                loss_of(model, x, y).backward()
        return [p.grad for p in model.parameters()]
    finally:
        torch.distributed.destroy_process_group()


def mean_gradients(device: str, world: int, kind: type) -> list[Tensor]:
    """What ``distributed_steps`` has to give, in one process."""
    model = Model(kind, device, torch.float32)
    for x, y in batches(device, torch.float32, world):
        (loss_of(model, x, y) / world).backward()
    return [p.grad for p in model.parameters()]


def assert_near(found: Any, expected: Any, tolerance: float) -> None:
    """Dicts or lists of tensors, relative to the largest value of each."""
    if isinstance(found, dict):
        found, expected = found.values(), expected.values()
    for one, other in zip(found, expected, strict=True):
        largest = other.abs().max().clamp(min=1e-3)
        assert bool(((one - other).abs().max() <= tolerance * largest).item())
