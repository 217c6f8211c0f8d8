"""DTensor gradients (FSDP2's) and DDP, two processes on gloo, against torch on the full model."""

from __future__ import annotations

import math
import os
import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import rnnfast

WORLD = 2
NORMS = (2.0, 1.0, math.inf, 3.0)


def gradients() -> list[Tensor]:
    """Uneven over two ranks, one with nothing on the second."""
    g = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=g) for shape in ((7, 3), (1, 4), (6,), (5, 2))]


def holder(grad: Tensor) -> nn.Parameter:
    """A parameter like ``grad``, which may be a DTensor, with this gradient."""
    parameter = nn.Parameter(torch.zeros_like(grad))
    parameter.grad = grad
    return parameter


def expected(grads: list[Tensor], max_norm: float, p: float) -> tuple[Tensor, list[Tensor]]:
    holders = [holder(g.clone()) for g in grads]
    norm = nn.utils.clip_grad_norm_(holders, max_norm, p)
    return norm, [h.grad for h in holders]


def shard(grads: list[Tensor], placements: list[Any]) -> list[Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD,))
    return [distribute_tensor(g.clone(), mesh, [p]) for g, p in zip(grads, placements, strict=True)]


def check(holders: list[nn.Parameter], full: list[Tensor], max_norm: float, p: float) -> None:
    from torch.distributed.tensor import DTensor

    want_norm, want = expected(full, max_norm, p)
    total = rnnfast.get_total_norm([h.grad for h in holders], p)
    norm = rnnfast.clip_grad_norm_(holders, max_norm, p)
    assert isinstance(norm, DTensor)
    assert norm.dtype == want_norm.dtype
    torch.testing.assert_close(norm.full_tensor(), want_norm)
    torch.testing.assert_close(norm.to_local(), want_norm)  # as torch's users write it, too
    torch.testing.assert_close(total.full_tensor(), want_norm)
    for h, grad in zip(holders, want, strict=True):
        torch.testing.assert_close(h.grad.full_tensor(), grad)
    both = [torch.empty_like(norm.to_local()) for _ in range(WORLD)]
    dist.all_gather(both, norm.to_local())
    assert torch.equal(both[0], both[1])


def sharded() -> None:
    from torch.distributed.tensor import Replicate, Shard

    full = gradients()
    for p in NORMS:
        for placements in ([Shard(0)] * 4, [Shard(0), Replicate(), Shard(0), Shard(1)]):
            for max_norm in (1.0, 1e6):
                check([holder(g) for g in shard(full, placements)], full, max_norm, p)


def pending_sums() -> None:
    """Gradients whose all-reduce has not happened yet."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial

    full = gradients()
    mesh = init_device_mesh("cpu", (WORLD,))
    share = 0.25 if dist.get_rank() == 0 else 0.75
    parts = [DTensor.from_local(share * g, mesh, [Partial()]) for g in full]
    check([holder(g) for g in parts], full, 1.0, 2.0)


def two_step_and_values() -> None:
    from torch.distributed.tensor import Shard

    full = gradients()
    holders = [holder(g) for g in shard(full, [Shard(0)] * 4)]
    norm = rnnfast.get_total_norm([h.grad for h in holders])
    rnnfast.clip_grads_with_norm_(holders, 1.0, norm)
    for h, grad in zip(holders, expected(full, 1.0, 2.0)[1], strict=True):
        torch.testing.assert_close(h.grad.full_tensor(), grad)
    rnnfast.clip_grad_value_(holders, 0.1)
    assert all(h.grad.full_tensor().abs().max() <= 0.1 for h in holders)


def not_finite() -> None:
    """A NaN that one rank alone has reaches all of them; the error leaves everything as it was."""
    from torch.distributed.tensor import Shard

    for p in (2.0, math.inf):
        full = gradients()
        full[0][0, 0] = math.nan
        holders = [holder(g) for g in shard(full, [Shard(0)] * 4)]
        with pytest.raises(RuntimeError, match="non-finite"):
            rnnfast.clip_grad_norm_(holders, 1.0, p, error_if_nonfinite=True)
        torch.testing.assert_close(holders[2].grad.full_tensor(), full[2])
        assert rnnfast.clip_grad_norm_(holders, 1.0, p).to_local().isnan()
        assert all(h.grad.full_tensor().isnan().all() for h in holders)


def large() -> None:
    from torch.distributed.tensor import Shard

    grads = shard([torch.full((6,), 1e300, dtype=torch.float64)], [Shard(0)])
    norm = rnnfast.get_total_norm(grads)
    torch.testing.assert_close(norm.to_local(), torch.tensor(1e300 * 6**0.5, dtype=torch.float64))


def fully_sharded() -> None:
    """FSDP2 over a model, one step: the norm and the parameters of the plain model."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    def model() -> nn.Module:
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))

    plain, ours = model(), model()
    fully_shard(ours)
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    for each in (plain, ours):
        each(x).square().sum().backward()
    want = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    norm: Any = rnnfast.clip_grad_norm_(ours.parameters(), 0.5)
    torch.testing.assert_close(norm.full_tensor(), want)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert isinstance(a.grad, DTensor)
        torch.testing.assert_close(a.grad.full_tensor(), b.grad)


def replicated_by_ddp() -> None:
    torch.manual_seed(3)
    plain = nn.LSTM(4, 6)
    ours = rnnfast.LSTM(4, 6)
    ours.load_state_dict(plain.state_dict())
    replica = nn.parallel.DistributedDataParallel(ours)
    x = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(4))
    mine = x[:, dist.get_rank() * 2 : dist.get_rank() * 2 + 2]
    replica(mine)[0].square().mean().backward()
    plain(x)[0].square().mean().backward()
    norm = rnnfast.clip_grad_norm_(replica.parameters(), 0.01)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(plain.parameters(), 0.01))
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


SCENES = (
    sharded,
    pending_sums,
    two_step_and_values,
    not_finite,
    large,
    fully_sharded,
    replicated_by_ddp,
)


def _run(rank: int, port: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD
    )
    try:
        for scene in SCENES:
            try:
                scene()
            except BaseException as error:
                raise AssertionError(f"{scene.__name__}, rank {rank}: {error}") from error
            dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes() -> None:
    """All scenes in one pair of processes, since starting one costs more than any of them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(_run, args=(port,), nprocs=WORLD)
