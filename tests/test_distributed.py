"""Training as docs/distributed.md has it: every layer in several processes on gloo."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import rnnfast

from .processes import ROOT, Torchrun, needs_gloo, needs_torchrun, together
from .test_docs import blocks

WORLD = 2
T, B, I, H = 5, 6, 4, 6  # B: of both processes
LAYERS = {
    "rnn": lambda: rnnfast.RNN(I, H),
    "lstm": lambda: rnnfast.LSTM(I, H, num_layers=2, bidirectional=True),
    "projected": lambda: rnnfast.LSTM(I, H, proj_size=3),
    "gru": lambda: rnnfast.GRU(I, H),
    "gru_reset_before": lambda: rnnfast.GRU(I, H, reset_after=False),
    "mgu": lambda: rnnfast.MGU(I, H),
    "compat_lstm": lambda: rnnfast.compat.LSTM(I, H),
    "recurrent": lambda: rnnfast.Recurrent("lstm", I, H),
    "checkpointed": lambda: rnnfast.GRU(I, H, checkpoint_every=2),
}


class Model(nn.Module):
    """A layer and a head that names a number for each step."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = LAYERS[name]().double()
        with torch.no_grad():
            width = self.layer(torch.zeros(1, 1, I, dtype=torch.float64))[0].shape[-1]
        self.head = nn.Linear(width, 1, dtype=torch.float64)

    def forward(self, x: Tensor, hx: Any = None, **more: Any) -> tuple[Tensor, Any]:
        y, state = self.layer(x, hx, **more)
        return self.head(y), state


def data(steps: int = T) -> tuple[Tensor, Tensor, Tensor]:
    """Input, targets, and lengths, of both processes."""
    g = torch.Generator().manual_seed(7)
    x = torch.randn(steps, B, I, dtype=torch.float64, generator=g)
    return (
        x,
        torch.randn(steps, B, 1, dtype=torch.float64, generator=g),
        torch.tensor([5, 1, 3] * 2),
    )


def mine(tensor: Tensor, dim: int = 1) -> Tensor:
    return tensor.chunk(WORLD, dim=dim)[dist.get_rank()]


def loss_of(model: nn.Module, x: Tensor, wanted: Tensor, **more: Any) -> Tensor:
    return (model(x, **more)[0] - wanted).square().mean()


def steps(model: nn.Module, clip: Any, batch: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Two of them; the norms of the gradients."""
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    x, wanted, lengths = batch
    norms = []
    for more in ({}, {"lengths": lengths}):
        optimizer.zero_grad()
        loss_of(model, x, wanted, **more).backward()
        norms.append(clip(model.parameters(), 0.1))
        optimizer.step()
    return norms


def fully_sharded() -> None:
    """FSDP2: forward, backward, clipping and update are those of one process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    x, wanted, lengths = data()
    for name in LAYERS:
        plain, model, again = Model(name), Model(name), Model(name)
        fully_shard(model.layer)
        fully_shard(model)
        expected = steps(plain, nn.utils.clip_grad_norm_, (x, wanted, lengths))
        found = steps(model, rnnfast.clip_grad_norm_, (mine(x), mine(wanted), mine(lengths, 0)))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.full_tensor(), b, msg=f"{name}: another norm")
        for (key, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert isinstance(p, DTensor)
            torch.testing.assert_close(p.full_tensor(), q, msg=f"{name}: another {key}")
        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        again.load_state_dict(whole)
        torch.testing.assert_close(again(x)[0], plain(x)[0])


def sharded_in_16_bit() -> None:
    """FSDP2's mixed precision: computed from weights in bfloat16, updated in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    plain, model = Model("gru").float(), Model("gru").float()
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    x = mine(data()[0]).bfloat16()
    y, state = model(x)
    y.float().square().mean().backward()
    plain.bfloat16()
    torch.testing.assert_close(y, plain(x)[0], rtol=0, atol=0)
    assert state.dtype == torch.bfloat16
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def gradients_accumulate() -> None:
    """DDP with no_sync over three windows of a minibatch, against the whole in one process."""
    x, wanted, _ = data(3 * T)
    for name in LAYERS:
        plain, model = Model(name), Model(name)
        replica = nn.parallel.DistributedDataParallel(model)
        sum(loss_of(plain, *pair) / 3 for pair in windows(x, wanted)).backward()
        pairs = list(windows(mine(x), mine(wanted)))
        for pair in pairs:
            with nullcontext() if pair is pairs[-1] else replica.no_sync():
                (loss_of(replica, *pair) / 3).backward()
        for (key, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, msg=f"{name}: another gradient of {key}")


def windows(x: Tensor, wanted: Tensor) -> Any:
    return zip(x.split(T), wanted.split(T), strict=True)


def states_are_carried() -> None:
    """Each process reads streams of its own on; the state stays with it, detached."""
    x, wanted, _ = data(3 * T)
    for name in sorted(LAYERS.keys() - {"lstm"}):  # which reads from both ends
        plain, model = Model(name), Model(name)
        expected = read_on(plain, x, wanted)
        replica = nn.parallel.DistributedDataParallel(model)
        found = torch.stack(read_on(replica, mine(x), mine(wanted)))
        dist.all_reduce(found)
        torch.testing.assert_close(found / WORLD, torch.stack(expected))


def read_on(model: nn.Module, x: Tensor, wanted: Tensor) -> list[Tensor]:
    """The loss of each window, with an update after it."""
    state, losses = None, []
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for part, target in windows(x, wanted):
        y, state = model(part, state)
        state = torch.utils._pytree.tree_map(Tensor.detach, state)
        loss = (y - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        rnnfast.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.detach())
    return losses


def recurrent_layers_are_not_split() -> None:
    """What torch says to a tensor-parallel recurrent layer, ours or its own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (nn.LSTM(I, H), rnnfast.LSTM(I, H)):
        with pytest.raises(NotImplementedError, match=r"only support nn\.Linear and nn\.Embedding"):
            parallelize_module(layer, mesh, ColwiseParallel())


@needs_gloo
def test_two_processes() -> None:
    together(
        WORLD,
        [
            fully_sharded,
            sharded_in_16_bit,
            gradients_accumulate,
            states_are_carried,
            recurrent_layers_are_not_split,
        ],
    )


@needs_torchrun
def test_the_pages_program_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """It prints what the page says; stopped in the middle of an epoch it goes on bit for bit."""
    text = (ROOT / "docs/distributed.md").read_text(encoding="utf-8")
    (block,) = blocks(text)
    program = tmp_path / "train.py"
    program.write_text(block.code)
    for name, updates in (("whole", 40), ("parts", 10), ("parts", 40)):
        run = Torchrun(tmp_path, str(program), str(tmp_path / f"{name}.pt"), str(updates))
        assert run.wait() == 0, run.errors
    assert run.printed == block.shown
    whole, parts = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "parts"))
    assert len(whole["losses"]) == 40
    assert parts["losses"] == whole["losses"]
    assert parts["at"] == whole["at"]
    for a, b in zip(parts["states"], whole["states"], strict=True):
        assert all(map(torch.equal, a, b))
    assert not torch.equal(whole["states"][0][0], whole["states"][1][0])
