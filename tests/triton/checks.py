"""What is asked of the kernels on a GPU (tests/gpu/test_triton.py) and, by the same functions, in
the interpreter (tests/triton/interpreted). ``placed`` puts a CPU tensor on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast.backends import registry
from rnnfast.cells import CELLS, CellSpec
from rnnfast.problem import Cotangents, Needs, Saved
from rnnfast.triton import clip_lists, graphs
from rnnfast.triton.plan import STRATEGY

from ..cases import Case, leaves, run, scan_of
from ..clip.lists import copies, mixed, parameters
from ..cuda_cases import MATHS, assert_close_in_tf32
from ..oracle import assert_all_close_to_oracle
from ..steps import test_own_cpu as own
from ..test_matrix import yardsticks

Placed = Callable[[Tensor], Tensor]
STRATEGIES = ("resident", "stepwise")
STORED = tuple(math for math in MATHS if math != "float64")
OF_EACH_WAY = ("lstm_proj", "gru", "mgu", "layer_norm_lstm")  # cells, of each way of launching
OWN = [*own.CELLS_HERE, CELLS["block_gru"].with_settings(heads=4), CELLS["slstm"]]
# two tiles of the batch; of a step forward and backward all that a kernel can be asked for
EVERYTHING = Case(
    "", T=4, B=18, I=3, H=20, P=9, lengths=True, resets=True, all_states=True, clip=0.25
)


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor.detach()


@contextmanager
def demanded(strategy: str, math: str = "float32", **more: str) -> Iterator[None]:
    """The strategy, the math of float32, and other variables of the environment."""
    with pytest.MonkeyPatch.context() as patch:
        precision = "tf32" if math == "tf32" else "ieee"
        patch.setattr(torch.backends.cudnn.rnn, "fp32_precision", precision)
        for name, value in {STRATEGY: strategy, **more}.items():
            patch.setenv(name, value)
        yield


def results(case: Case, placed: Placed = as_it_is, **other: Tensor) -> dict[str, Tensor]:
    """Outputs and gradients by name, in float32, on the CPU. ``other``: tensors instead of the
    case's. It is the backend that is called, so that lengths are nobody's to check."""
    given = {**leaves(case, torch.float32), **other}
    t = {name: placed(value) for name, value in given.items()}
    scan = scan_of(case, t)
    backend, spec = registry.BACKENDS["triton"], rnnfast.CELLS[case.cell]
    with torch.no_grad():
        made, saved = backend.forward(scan)
        dfinal = [t["d" + name] for name in spec.states]
        cotangents = Cotangents(t["dy"], dfinal, [t["dtrace"]] if made.trace else [])
        kept = Saved(made.y, made.trace, saved)
        grads = backend.backward(scan, kept, cotangents, Needs(True, True, True))
    assert grads.dstates is not None
    assert grads.dweights is not None
    found = [made.y, *made.final, *made.trace, grads.dinput, *grads.dstates, *grads.dweights]
    names = ["y", *spec.states, *("trace" for _ in made.trace), "grad of x"]
    names += [f"grad of {n}" for n in spec.states]
    names += [f"grad of {n}" for n in spec.weight_names(case.kind, case.bias)]
    assert {tensor.device for tensor in found if tensor is not None} == {scan.input.device}
    return {n: value.cpu() for n, value in zip(names, found, strict=True) if value is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit by bit, and finite."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert bool(value.isfinite().all()), name
        assert torch.equal(found[name], value), name


# --- values --------------------------------------------------------------------------------------


def check_values(cell: str, strategy: str, math: str, device: str) -> None:
    """Against the naive loop in float64."""
    case = replace(EVERYTHING, cell=cell, reverse=True)
    with demanded(strategy, math):
        found = run(case, "triton", MATHS[math], device=device)
    found = {name: value.cpu() for name, value in found.items()}
    if math == "tf32":
        assert_close_in_tf32(found, case)
    else:
        assert_all_close_to_oracle(found, *yardsticks(case, MATHS[math], found["y"]))


def check_lengths(cell: str, strategy: str, reverse: bool, placed: Placed) -> None:
    """Lengths out of range count as clamped, and nothing outside of a tensor is read or written."""
    T, B = EVERYTHING.T, 7
    lengths = torch.tensor([T + 1, -1, 2**40, -(2**40), 0, T, T - 1])
    case = replace(EVERYTHING, cell=cell, B=B, reverse=reverse)
    with demanded(strategy, **{graphs.SWITCH: "0"}), guarded():
        expected = results(case, placed, lengths=lengths.clamp(0, T))
        assert_same(results(case, placed, lengths=lengths), expected)


def check_own(spec: CellSpec, dtype: torch.dtype, device: str = "cpu", **call: Any) -> None:
    own.check(spec, dtype, "triton", device, **call)


@contextmanager
def guarded() -> Iterator[None]:
    """Each launch is given copies that lie between two steps' worth of NaN, which has to stay."""
    from rnnfast.triton.device import Door

    launcher = Door.launcher

    def guarding(
        door: Door, kernel: Any, grid: tuple[int, ...], **given: Any
    ) -> Callable[..., None]:
        def call(**rest: Any) -> None:
            values = {**given, **rest}
            copies = {id(v): _Guarded(v) for v in values.values() if isinstance(v, Tensor)}
            taken = {n: copies[id(v)].inner if id(v) in copies else v for n, v in values.items()}
            launcher(door, kernel, grid, **taken)()
            for copy in copies.values():
                copy.back(kernel.__name__)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Door, "launcher", guarding)
        yield


class _Guarded:
    def __init__(self, of: Tensor) -> None:
        steps = 2 * (of[0].numel() if of.dim() == 3 else of.numel())
        self.of, self.width = of, (steps + 63) // 64 * 64  # as aligned as torch's own
        poison = torch.nan if of.is_floating_point() else 1
        self.memory = of.new_full((of.numel() + 2 * self.width,), poison)
        self.inner = self.memory[self.width : self.width + of.numel()].view(of.shape).copy_(of)

    def back(self, kernel: str) -> None:
        for guard in (self.memory[: self.width], self.memory[self.width + self.of.numel() :]):
            kept = guard.isnan() if guard.is_floating_point() else guard == 1
            assert bool(kept.all()), f"{kernel} wrote outside of a tensor {list(self.of.shape)}"
        self.of.copy_(self.inner)


# --- graphs --------------------------------------------------------------------------------------


def check_graphs(cell: str, placed: Placed, after: Callable[[], None] = lambda: None) -> None:
    """Launches, then a capture, then a replay, each with other values; ``after`` each of them."""
    for seed in range(3):
        case = replace(EVERYTHING, cell=cell, B=3, T=graphs.FEWEST_STEPS, seed=seed)
        with demanded("stepwise", **{graphs.SWITCH: "0"}):
            expected = results(case, placed)
        with demanded("stepwise"):
            assert_same(results(case, placed), expected)
        after()


def check_odd_addresses(placed: Placed) -> None:
    """Tensors that begin between the multiples of 16 bytes. Triton has another kernel for a graph's
    own, and a capture can't load one."""

    def odd(tensor: Tensor) -> Tensor:
        memory = placed(torch.zeros(tensor.numel() + 1, dtype=tensor.dtype))
        return memory[1:].view(tensor.shape).copy_(placed(tensor.contiguous()))

    for seed in range(3):
        case = replace(EVERYTHING, cell="gru", B=3, T=graphs.FEWEST_STEPS, seed=seed)
        with demanded("stepwise"):
            found, expected = results(case, odd), results(case, placed)
        for name, value in expected.items():  # cuBLAS too may have another kernel for them
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def check_a_callers_graph(strategy: str, placed: Placed) -> None:
    """The launches become part of it; nothing is timed, nothing captured within."""
    case = replace(EVERYTHING, cell="gru", B=3, T=graphs.FEWEST_STEPS, all_states=False)
    t = {name: placed(value) for name, value in leaves(case, torch.float32).items()}
    scan, backend = scan_of(case, t, training=False), registry.BACKENDS["triton"]
    with demanded(strategy), torch.no_grad():
        expected = backend.forward(scan)[0]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(scan.input.device)
        side = torch.cuda.Stream(scan.input.device)
        with torch.cuda.graph(graph, stream=side), torch.cuda.device(0):  # perhaps another one
            for _ in range(2):  # the second is the one that a graph of ours would serve
                made = backend.forward(scan)[0]
        made.y.fill_(torch.nan)
        graph.replay()
    assert torch.equal(made.y.cpu(), expected.y.cpu())


# --- lists ---------------------------------------------------------------------------------------


def gradients() -> list[Tensor]:
    return [g for g in copies(mixed()) if g is not None and g.numel() < 1100]


def clipped_by_torch() -> list[Tensor]:
    """The norm of a list of gradients, and they, scaled, scaled again and clamped."""
    ours = parameters(gradients())
    norm = nn.utils.clip_grad_norm_(ours, 1.0)
    nn.utils.clip_grads_with_norm_(ours, 0.5, norm)
    nn.utils.clip_grad_value_(ours, 0.01)
    return [norm.float(), *(p.grad for p in ours if p.grad is not None)]


def clipped(placed: Placed) -> list[Tensor]:
    """The same by the kernels."""
    kernels = clip_lists.TritonKernels()
    grads = [placed(g) for g in gradients()]
    norm = kernels.norm(grads, 2.0, True, max_norm=1.0)
    assert norm is not None
    assert kernels.scale(grads, norm, 0.5)
    assert kernels.clamp(grads, 0.01)
    return [norm.cpu().float(), *(g.cpu() for g in grads)]


def check_lists(placed: Placed) -> None:
    """Against torch's own functions on the CPU."""
    for value, right in zip(clipped(placed), clipped_by_torch(), strict=True):
        torch.testing.assert_close(value, right)


def check_lists_that_are_not_taken(placed: Placed) -> None:
    """On two devices; while a graph is captured, when torch's own functions serve."""
    kernels, ours = clip_lists.TritonKernels(), placed(torch.ones(3))
    assert kernels.norm([ours, torch.ones(3)], 2.0, True, max_norm=1.0) is None
    assert not kernels.clamp([ours, torch.ones(3)], 0.5)
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream(ours.device)
    with torch.cuda.graph(graph, stream=side), torch.cuda.device(0):
        taken = kernels.scale([ours], ours[0], 0.5)
        ours.mul_(2)  # a graph of nothing is a warning
    assert not taken
