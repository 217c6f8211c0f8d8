"""DTensor gradients (FSDP2's, tensor parallelism's) and DDP, two or four processes on gloo, against
torch on the full model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import rnnfast

from ..processes import needs_gloo, together

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


def net() -> nn.Module:
    """Of a tensor-parallel program: two layers that are split, and recurrent ones that are not."""
    torch.manual_seed(6)
    parts = {"embed": nn.Linear(5, 8), "rnn": rnnfast.LSTM(8, 6), "head": nn.Linear(6, 4)}
    return nn.ModuleDict(parts).double()


def run(model: nn.Module, x: Tensor) -> Tensor:
    loss: Tensor = model["head"](model["rnn"](model["embed"](x))[0]).square().mean()
    return loss


def split(model: nn.Module, mesh: Any) -> None:
    """The head by rows, the embedding by columns of the product's result: who made it gathers."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    whole = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(model, mesh, {"embed": whole, "head": whole})


def compare(model: nn.Module, plain: nn.Module, p: float) -> None:
    from torch.distributed.tensor import DTensor

    full = {name: q.grad for name, q in plain.named_parameters()}
    norm: Any = rnnfast.clip_grad_norm_(model.parameters(), 0.01, p)
    torch.testing.assert_close(
        norm.full_tensor(), nn.utils.clip_grad_norm_(plain.parameters(), 0.01, p)
    )
    for name, q in model.named_parameters():
        grad = q.grad.full_tensor() if isinstance(q.grad, DTensor) else q.grad
        torch.testing.assert_close(grad, full[name])


def tensor_parallel() -> None:
    """Gradients of split layers are sharded over the mesh, those of the others plain and alike."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    x = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for p in NORMS:
        plain, model = net(), net()
        split(model, init_device_mesh("cpu", (WORLD,)))
        for each in (plain, model):
            run(each, x).backward()
        assert model["head"].weight.grad.placements == (Shard(0),)
        assert not isinstance(model["rnn"].weight_hh_l0.grad, DTensor)
        compare(model, plain, p)


def tensor_parallel_and_fully_sharded() -> None:
    """A mesh of 2 x 2: parameters of split layers lie on four ranks, those of the others on two."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    x = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mine = x.chunk(2, dim=1)[mesh["data"].get_local_rank()]
    for p in (2.0, math.inf):
        plain, model = net(), net()
        split(model, mesh["tensor"])
        for name in ("embed", "rnn", "head"):  # a ModuleDict has no forward of its own
            fully_shard(model[name], mesh=mesh["data"])
        run(plain, x).backward()
        run(model, mine).backward()
        assert model["head"].weight.grad.device_mesh.ndim == 2
        assert model["rnn"].weight_hh_l0.grad.placements == (Shard(0),)
        compare(model, plain, p)


SCENES = (
    sharded,
    pending_sums,
    two_step_and_values,
    not_finite,
    large,
    fully_sharded,
    replicated_by_ddp,
    tensor_parallel,
)


@needs_gloo
def test_two_processes() -> None:
    together(WORLD, SCENES)


@needs_gloo
def test_four_processes() -> None:
    together(4, [tensor_parallel_and_fully_sharded])
