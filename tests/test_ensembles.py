"""vmap over weights: the members of an ensemble at once, the bits of one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, stack_module_state

import rnnfast
from rnnfast import _ext
from rnnfast.backends import cpu
from rnnfast.problem import Cotangents, Needs, Options, Saved, Scan

from .layers import makers

pytestmark = pytest.mark.skipif(
    _ext.why_no_cpu() is not None, reason=f"nothing is compiled here: {_ext.why_no_cpu()}"
)
T, B, I, H = 5, 3, 4, 6
LAYERS = makers(I, H, proj_size=2)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def members_of(cell: str, count: int, dtype: torch.dtype, **options: Any) -> list[Scan]:
    spec = rnnfast.CELLS[cell]
    P = 3 if spec.projected else H
    shapes = {"w_ih": (I,), "w_hh": (P,), "b_ih": (), "b_hh": ()}
    make = torch.manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(dtype)

    found = []
    for _ in range(count):
        weights = [
            randn(P, H) if name == "w_hr" else randn(spec.gates * H, *shapes[name])
            for name in spec.weight_names("dense", True)
        ]
        states = [randn(B, width) for width in spec.state_widths(P, H)]
        lengths, resets = torch.tensor([5, 0, 3]), (torch.arange(T * B) % 7 == 3).view(T, B)
        given = ("dense", randn(T, B, I), states, weights, lengths, resets)
        found.append(Scan(cell, *given, Options(training=True, **options)))
    return found


def bits(tensors: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tensors)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "cell", ["rnn_tanh", "rnn_relu", "lstm", "lstm_proj", "gru", "gru_reset_before", "mgu"]
)
def test_at_once_as_one_after_the_other(cell: str, reverse: bool, dtype: torch.dtype) -> None:
    """Five: two and two at once, and one that shares the threads."""
    backend, needs = cpu.Cpu(), Needs(True, True, True)
    scans = members_of(cell, 5, dtype, reverse=reverse, all_states=cell == "lstm")
    with torch.no_grad(), threads(2):
        together = backend.forward_members(scans)
        alone = [backend.forward(scan) for scan in scans]
        live = (
            torch.arange(T).unsqueeze(-1) < scans[0].lengths
        )  # nobody writes what is saved past it
        for a, b in zip(bits(together), bits(alone), strict=True):
            assert torch.equal(*((a[live], b[live]) if a.shape[:2] == (T, B) else (a, b)))
        saved = [Saved(y, trace, extra) for (y, _, trace), extra in alone]
        cotangents = [
            Cotangents(torch.ones_like(y), [torch.ones_like(s) for s in final], list(trace))
            for (y, final, trace), _ in alone
        ]
        given = (scans, saved, cotangents, [needs] * len(scans))
        back = backend.backward_members(*given)
        for a, b in zip(
            bits([tuple(g) for g in back]),
            bits([tuple(backend.backward(*one)) for one in zip(*given, strict=True)]),
            strict=True,
        ):
            assert torch.equal(a, b)


class Counted:
    """The compiled module, and how many scans were run at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real, self.at_once = cpu.module(), list[int]()
        monkeypatch.setattr(cpu, "module", lambda: self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def cpu_jobs(self) -> Any:
        jobs, counted = self.real.cpu_jobs(), self

        class Jobs:
            def run(self) -> None:
                counted.at_once.append(jobs.count)
                jobs.run()

            @property
            def real(self) -> Any:
                return jobs

        return Jobs()

    def cpu_forward(self, *, jobs: Any = None, **given: Any) -> Any:
        return self.real.cpu_forward(**given, jobs=None if jobs is None else jobs.real)

    def cpu_backward(self, *, jobs: Any = None, **given: Any) -> Any:
        return self.real.cpu_backward(**given, jobs=None if jobs is None else jobs.real)


@pytest.mark.parametrize("name", ["lstm", "gru", "lstm_proj"])
def test_an_ensemble_is_one_call_each_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [LAYERS[name]().double() for _ in range(4)]
    p, _ = stack_module_state(layers)
    x = torch.randn(T, B, I, dtype=torch.float64)

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layers[0], p, (x,))[0].square().sum()

    counted = Counted(monkeypatch)
    with rnnfast.use_backend("cpu"), threads(2):
        found = torch.vmap(grad(loss), in_dims=(0, None))(p, x)
    assert counted.at_once == [4, 4]
    for k, layer in enumerate(layers):
        expected = torch.autograd.grad(loss(dict(layer.named_parameters()), x), layer.parameters())
        torch.testing.assert_close([d[k] for d in found.values()], list(expected))


def test_ensembles_in_one_another_and_in_other_transforms() -> None:
    layers = [LAYERS["lstm"]().double() for _ in range(3)]
    p, _ = stack_module_state(layers)
    p = {name: w.detach() for name, w in p.items()}
    x = torch.randn(T, B, I, dtype=torch.float64)
    several = {name: torch.stack([w, 2 * w]) for name, w in p.items()}

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layers[0], p, (x,))[0].square().sum()

    def found() -> list[Any]:
        of_members = torch.vmap(grad(loss), in_dims=(0, None))
        per_sample = torch.vmap(grad(loss), in_dims=(None, 1))
        return [
            torch.vmap(of_members, in_dims=(0, None))(several, x),
            torch.vmap(per_sample, in_dims=(0, None))(p, x),
            grad(lambda p: torch.vmap(loss, in_dims=(0, None))(p, x).square().sum())(p),
            jacrev(lambda p: torch.vmap(loss, in_dims=(0, None))(p, x))(p),
            torch.func.jvp(lambda p: torch.vmap(loss, in_dims=(0, None))(p, x), (p,), (p,)),
            grad(lambda x: sum(d.sum() for d in of_members(p, x).values()))(x),
        ]

    made = []
    for backend in ("cpu", "reference"):
        with rnnfast.use_backend(backend):
            made.append(found())
    torch.testing.assert_close(*made)


def test_randomness_is_as_vmap_has_it() -> None:
    layer = rnnfast.LSTM(I, H, recurrent_dropout=0.5).double()
    p = {name: torch.stack([w.detach()] * 2) for name, w in layer.named_parameters()}
    x = torch.randn(T, B, I, dtype=torch.float64)

    def y(p: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, p, (x,))[0]

    with rnnfast.use_backend("cpu"):
        with pytest.raises(RuntimeError, match="randomness"):
            torch.vmap(y)(p)
        same, other = torch.vmap(y, randomness="same")(p)
        assert torch.equal(same, other)
        one, other = torch.vmap(y, randomness="different")(p)
        assert not torch.equal(one, other)
