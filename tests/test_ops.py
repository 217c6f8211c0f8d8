"""The ops themselves: opcheck, gradcheck, gradgradcheck, batching rules, views."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

import rnnfast
from rnnfast.backends import registry
from rnnfast.cells import CELLS
from rnnfast.ops import pack

from .cases import BUILT_IN, OPTIONS, Case, leaves, refusal, scan_of, small, taking

VARIANTS = [small(Case(cell, **options)) for cell, options in product(BUILT_IN, OPTIONS)]
# opcheck looks at structure (schema, fake kernel, registration), which a few cases span
STRUCTURES = [
    Case("rnn_tanh", 2, 2, 2, 2),
    Case("lstm", 2, 2, 2, 2, lengths=True, resets=True, reverse=True, all_states=True),
    Case("lstm_proj", 2, 2, 2, 2, kind="tokens", bias=False),
    Case("gru", 2, 2, 2, 2, lengths=True),
    Case("gru_reset_before", 2, 2, 2, 2, kind="gates"),
]


def skip_if_refused(case: Case, backend: str) -> None:
    reason = refusal(case, backend, torch.float64)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def call(case: Case, backend: str, t: dict[str, Tensor]) -> list[Tensor]:
    """The differentiable outputs of scan_forward, flat."""
    scan = scan_of(case, t)
    y, final, trace, _ = torch.ops.rnnfast.scan_forward(*pack(scan, backend))
    return [y, *final, *trace]


def differentiable(t: dict[str, Tensor]) -> list[str]:
    return [n for n, v in t.items() if v.requires_grad]


@pytest.mark.parametrize("case", STRUCTURES, ids=str)
@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_opcheck_forward(case: Case, backend: str) -> None:
    skip_if_refused(case, backend)
    scan = scan_of(case, leaves(case, torch.float64))
    torch.library.opcheck(torch.ops.rnnfast.scan_forward.default, pack(scan, backend))


@pytest.mark.parametrize("case", STRUCTURES, ids=str)
@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_opcheck_backward(case: Case, backend: str) -> None:
    skip_if_refused(case, backend)
    t = leaves(case, torch.float64)
    scan = scan_of(case, t)
    with torch.no_grad():
        y, _final, trace, saved = torch.ops.rnnfast.scan_forward(*pack(scan, backend))
    dfinal = [t["d" + n] for n in rnnfast.CELLS[case.cell].states]
    dtrace = [t["dtrace"]] if case.all_states else []
    needs = [case.kind != "tokens", True, True]
    args = (*pack(scan, backend), t["dy"], dfinal, dtrace, y, trace, saved, needs, 0)
    torch.library.opcheck(torch.ops.rnnfast.scan_backward.default, args)


# a gradient that was clipped on its way is no derivative of forward
UNCLIPPED = [c for c in VARIANTS if c.clip == 0]


@pytest.mark.parametrize("case", UNCLIPPED, ids=str)
@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_gradients_against_finite_differences(case: Case, backend: str) -> None:
    skip_if_refused(case, backend)
    t = leaves(case, torch.float64)
    names = differentiable(t)

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(call(case, backend, {**t, **dict(zip(names, values, strict=False))}))

    assert torch.autograd.gradcheck(outputs, [t[n] for n in names])


SECOND = [c for c in UNCLIPPED if c.cell in ("lstm_proj", "gru_reset_before")]
SECOND += [small(Case(cell)) for cell in BUILT_IN]


@pytest.mark.parametrize("case", SECOND, ids=str)
def test_second_derivatives_against_finite_differences(case: Case) -> None:
    t = leaves(case, torch.float64)
    names = differentiable(t)

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(call(case, "reference", {**t, **dict(zip(names, values, strict=False))}))

    assert torch.autograd.gradgradcheck(outputs, [t[n] for n in names], fast_mode=True)


def test_third_derivative() -> None:
    t = leaves(Case("lstm", T=2, B=1, I=1, H=1), torch.float64)

    def cube(x: Tensor) -> Tensor:
        return call(Case("lstm", T=2, B=1, I=1, H=1), "reference", {**t, "x": x})[0].sum()

    x = t["x"]
    found, expected = [], []
    for function, into in ((cube, found), (lambda x: _scratch_sum(t, x), expected)):
        value = function(x)
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            into.append(value.detach())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def _scratch_sum(t: dict[str, Tensor], x: Tensor) -> Tensor:
    scan = scan_of(Case("lstm", T=2, B=1, I=1, H=1), {**t, "x": x})
    return rnnfast.scratch.scratch_scan(scan).y.sum()


def test_a_tensor_passed_twice_counts_once_each() -> None:
    """h0 and c0 the same tensor: its gradient is the sum, also the second one."""
    case = Case("lstm", T=3, B=2, I=2, H=2)
    t = leaves(case, torch.float64)

    def same_state(s: Tensor) -> Tensor:
        y = call(case, "reference", {**t, "h": s, "c": s})[0]
        return y.square().sum()

    assert torch.autograd.gradgradcheck(same_state, [t["h"]])


@pytest.mark.parametrize("name", ["x", "h", "w_hh"])
def test_only_the_gradient_asked_for(name: str) -> None:
    case = Case("gru")
    t = {n: v.detach() for n, v in leaves(case, torch.float64).items()}
    t[name].requires_grad_()
    (through_op,) = torch.autograd.grad(call(case, "reference", t)[0].sum(), t[name])
    (direct,) = torch.autograd.grad(rnnfast.scratch.scratch_scan(scan_of(case, t)).y.sum(), t[name])
    torch.testing.assert_close(through_op, direct)


@pytest.mark.parametrize("cell", BUILT_IN)
def test_gradient_of_one_output_alone(cell: str) -> None:
    """Outputs that take no part in the loss: their missing gradients count as zero."""
    case = Case(cell, all_states=True)
    t = leaves(case, torch.float64)
    direct = rnnfast.scratch.scratch_scan(scan_of(case, t))
    flat = [direct.y, *direct.final, *direct.trace]
    for through_op, expected in zip(call(case, "reference", t), flat, strict=False):
        grads = torch.autograd.grad(through_op.sum(), t["w_hh"], retain_graph=True)
        wanted = torch.autograd.grad(expected.sum(), t["w_hh"], retain_graph=True)
        torch.testing.assert_close(grads, wanted)


@pytest.mark.parametrize("mapped", ["x", "h", "w_hh", "lengths", "resets"])
@pytest.mark.parametrize("kind", ["dense", "tokens"])
def test_vmap_of_the_op(mapped: str, kind: str) -> None:
    case = Case("lstm", kind=kind, lengths=True, resets=True, all_states=True)
    t = {n: v.detach() for n, v in leaves(case, torch.float64).items()}
    several = torch.stack([t[mapped], t[mapped].flip(0), t[mapped].roll(1, -1)], 1)

    def one(value: Tensor) -> tuple[Tensor, ...]:
        return tuple(call(case, "reference", {**t, mapped: value}))

    found = torch.vmap(one, in_dims=1)(several)
    expected = [torch.stack(o) for o in zip(*(one(v) for v in several.unbind(1)), strict=False)]
    for a, b in zip(found, expected, strict=False):
        torch.testing.assert_close(a, b)


def test_batched_gradients_of_the_op() -> None:
    """vmap over torch.autograd.grad runs the backward op under vmap."""
    case = Case("gru", T=3, B=2, I=2, H=2)
    t = leaves(case, torch.float64)
    y = call(case, "reference", t)[0]
    rows = torch.randn(4, *y.shape, dtype=torch.float64)

    def dx(row: Tensor) -> Tensor:
        return torch.autograd.grad(y, t["x"], row, retain_graph=True)[0]

    torch.testing.assert_close(torch.vmap(dx)(rows), torch.stack([dx(r) for r in rows]))


def test_outputs_share_no_memory() -> None:
    t = leaves(Case("rnn_tanh", T=1), torch.float64)
    for backend in taking(torch.float64):
        outputs = [o.detach() for o in call(Case("rnn_tanh", T=1), backend, t)]
        assert len({o.untyped_storage().data_ptr() for o in outputs}) == len(outputs)
        assert t["h"].untyped_storage().data_ptr() not in {
            o.untyped_storage().data_ptr() for o in outputs
        }


def test_a_scan_is_one_graph_from_its_first_call_on() -> None:
    """What a cell knows of itself is made with it: a trace would refuse, or guard on, what it finds
    being made."""
    spec = CELLS["gru"]
    CELLS["tests:fresh gru"] = replace(spec, name="tests:fresh gru")
    try:
        x, h = torch.randn(3, 2, 4), torch.zeros(2, 5)
        weights = [torch.randn(15, 4), torch.randn(15, 5)]

        def y(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
            return rnnfast.scan("tests:fresh gru", x, [h], weights, backend="reference").y

        found = torch.compile(y, backend="eager", fullgraph=True)(x, h, *weights)
        torch.testing.assert_close(found, rnnfast.scan("gru", x, [h], weights).y)
    finally:
        del CELLS["tests:fresh gru"]
