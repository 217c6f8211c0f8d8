"""The C++ cells and the C++ reference scan against torch.nn and against plain loops, in float64.

Their own tests against formulas and finite differences are in tests/cpp; here torch is the judge.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnnfast.cells import CELLS, StepWeights

from . import cells_module
from .cases import BUILT_IN

ext: Any = None

EXACT = {"rtol": 1e-11, "atol": 1e-12}
T, B, I, H = 6, 4, 5, 3

TORCH_CELLS = {
    "rnn_tanh": lambda: nn.RNNCell(I, H, nonlinearity="tanh"),
    "rnn_relu": lambda: nn.RNNCell(I, H, nonlinearity="relu"),
    "lstm": lambda: nn.LSTMCell(I, H),
    "gru": lambda: nn.GRUCell(I, H),
}
TORCH_LAYERS = {
    "rnn_tanh": lambda: nn.RNN(I, H, nonlinearity="tanh", bidirectional=True),
    "rnn_relu": lambda: nn.RNN(I, H, nonlinearity="relu", bidirectional=True),
    "lstm": lambda: nn.LSTM(I, H, bidirectional=True),
    "lstm_proj": lambda: nn.LSTM(I, H, proj_size=2, bidirectional=True),
    "gru": lambda: nn.GRU(I, H, bidirectional=True),
}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, **EXACT)


def randn(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=grad)


@pytest.fixture(autouse=True, scope="module")
def _extension() -> None:
    global ext
    ext = cells_module.load()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(5)


def test_the_lists_agree() -> None:
    assert [c["name"] for c in ext.cells()] == list(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_facts_agree(name: str) -> None:
    spec = CELLS[name]
    values = [value.name for value in spec.saved]
    own = spec.own_product_gate
    assert next(c for c in ext.cells() if c["name"] == name) == {
        "name": name,
        "gates": spec.gates,
        "states": len(spec.states),
        "products": [
            (p.weight, -1 if p.operand == "h" else values.index(p.operand), p.gates)
            for p in spec.products
        ],
        "saved": [value.activation or "plain" for value in spec.saved],
        "saves_output": not spec.saves_gates,
        "own_gate": -1 if own is None else own,
        "reads_h": spec.reads_h,
    }


# One step


@pytest.mark.parametrize("name", TORCH_CELLS)
def test_a_cell_is_that_of_torch(name: str) -> None:
    cell = TORCH_CELLS[name]().double()
    spec = CELLS[name]
    x = randn(B, I, grad=True)
    states = [randn(B, H, grad=True) for _ in spec.states]
    expected = cell(x, states[0] if len(states) == 1 else tuple(states))
    expected = expected if isinstance(expected, tuple) else (expected,)
    upstream = [randn(B, H) for _ in states]
    torch.autograd.backward(expected, upstream)

    def by_unit(gates: Tensor) -> Tensor:  # [B, G*H] as [B, H, G], not contiguous
        return gates.view(B, spec.gates, H).transpose(1, 2)

    with torch.no_grad():
        gx = by_unit(nn.functional.linear(x, cell.weight_ih, cell.bias_ih))
        gh = by_unit(nn.functional.linear(states[0], cell.weight_hh, cell.bias_hh))
        s = torch.stack(states, -1)
        new, saved = ext.cell_forward(name, gx, gh, s)
        dgx, dgh, ds = ext.cell_backward(name, torch.stack(upstream, -1), saved, s)
        dgx, dgh = (d.transpose(1, 2).reshape(B, -1) for d in (dgx, dgh))
        through_product = dgh @ cell.weight_hh

    for k, state in enumerate(states):
        close(new[..., k], expected[k].detach())
        close(ds[..., k] + (through_product if k == 0 else 0), state.grad)
    close(dgx @ cell.weight_ih, x.grad)
    close(dgx.T @ x, cell.weight_ih.grad)
    close(dgh.T @ states[0], cell.weight_hh.grad)
    close(dgx.sum(0), cell.bias_ih.grad)
    close(dgh.sum(0), cell.bias_hh.grad)


@pytest.mark.parametrize("name", ["rnn_relu", "lstm", "gru"])
def test_a_nan_stays_a_nan(name: str) -> None:
    spec = CELLS[name]
    gx = torch.zeros(2, spec.gates, dtype=torch.float64)
    gx[0] = torch.nan
    new, _ = ext.cell_forward(
        name, gx, torch.zeros_like(gx), torch.zeros(2, len(spec.states)).double()
    )
    assert new[0].isnan().all()
    assert not new[1].isnan().any()


# All steps


def run(
    name: str, gx: Tensor, states: list[Tensor], weights: StepWeights, **masks: Any
) -> tuple[Tensor, list[Tensor], list[Tensor], dict[str, Any]]:
    """Forward of the reference scan, and what its backward wants besides gradients."""
    shared = {
        "states": [s.detach() for s in states],
        "w_hh": weights.w_hh.detach(),
        "b_hh": None if weights.b_hh is None else weights.b_hh.detach(),
        "w_hr": None if weights.w_hr is None else weights.w_hr.detach(),
        **masks,
    }
    y, final, trace, saved = ext.reference_scan_forward(name, gx.detach(), **shared)
    return y, final, trace, {"y": y, "trace": trace, "saved": saved, **shared}


@pytest.mark.parametrize("name", TORCH_LAYERS)
def test_a_scan_is_a_layer_of_torch(name: str) -> None:
    layer = TORCH_LAYERS[name]().double()
    spec = CELLS[name]
    x = randn(T, B, I, grad=True)
    widths = [layer.proj_size or H, H][: len(spec.states)]
    states = [randn(2, B, width, grad=True) for width in widths]
    y, final = layer(x, states[0] if len(states) == 1 else tuple(states))
    final = final if isinstance(final, tuple) else (final,)
    dy, dfinal = torch.randn_like(y), [torch.randn_like(s) for s in final]
    torch.autograd.backward((y, *final), (dy, *dfinal))

    dx = torch.zeros_like(x)
    for direction, suffix in enumerate(("", "_reverse")):

        def parameter(kind: str, suffix: str = suffix) -> Tensor | None:
            return getattr(layer, f"{kind}_l0{suffix}", None)

        weights = StepWeights(parameter("weight_hh"), parameter("bias_hh"), parameter("weight_hr"))
        gx = nn.functional.linear(x, parameter("weight_ih"), parameter("bias_ih")).detach()
        scan_y, scan_final, _, kept = run(
            name, gx, [s[direction] for s in states], weights, reverse=direction == 1
        )
        half = slice(direction * widths[0], (direction + 1) * widths[0])
        close(scan_y, y[..., half].detach())
        for got, want in zip(scan_final, final, strict=True):
            close(got, want[direction].detach())

        dgx, dstates, dw_hh, db_hh, dw_hr = ext.reference_scan_backward(
            name,
            dy=dy[..., half],
            dfinal=[d[direction] for d in dfinal],
            dtrace=[torch.zeros_like(t) for t in kept["trace"]],
            **kept,
        )
        for got, state in zip(dstates, states, strict=True):
            close(got, state.grad[direction])
        close(dw_hh, weights.w_hh.grad)
        close(db_hh, weights.b_hh.grad)
        assert (dw_hr is None) == (weights.w_hr is None)
        if dw_hr is not None:
            close(dw_hr, weights.w_hr.grad)
        close(torch.einsum("tbg,tbi->gi", dgx, x.detach()), parameter("weight_ih").grad)
        dx += dgx @ parameter("weight_ih").detach()
    close(dx, x.grad)


def loop(
    name: str,
    gx: Tensor,
    states: list[Tensor],
    weights: StepWeights,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """One sequence after the other with the step of ``rnnfast.cells``: (y, final, trace)."""
    rows, finals = [], []
    for b in range(gx.shape[1]):
        length = gx.shape[0] if lengths is None else int(lengths[b])
        state = tuple(s[b : b + 1] for s in states)
        visited = [tuple(torch.zeros_like(s) for s in state)] * gx.shape[0]
        for t in reversed(range(length)) if reverse else range(length):
            if resets is not None and resets[t, b]:
                state = tuple(torch.zeros_like(s) for s in state)
            state = CELLS[name].step(gx[t, b : b + 1], state, weights)
            visited[t] = state
        finals.append(state)
        rows.append([torch.stack(series) for series in zip(*visited, strict=True)])
    series = [torch.cat(parts, 1) for parts in zip(*rows, strict=True)]
    return series[0], [torch.cat(parts) for parts in zip(*finals, strict=True)], series[1:]


def leaf(*shape: int) -> Tensor:
    return randn(*shape, grad=True)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("masks", ["none", "lengths", "resets", "lengths+resets"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_scan_is_a_loop(name: str, bias: bool, masks: str, reverse: bool) -> None:
    spec = CELLS[name]
    P = 2 if spec.projected else H
    gx = leaf(T, B, spec.gates * H)
    states = [leaf(B, P), leaf(B, H)][: len(spec.states)]
    weights = StepWeights(
        leaf(spec.gates * H, P),
        leaf(spec.gates * H) if bias else None,
        leaf(P, H) if spec.projected else None,
    )
    lengths = torch.tensor([T, 1, 0, 4]) if "lengths" in masks else None
    resets = torch.rand(T, B) < 0.4 if "resets" in masks else None

    y, final, trace = loop(name, gx, states, weights, lengths, resets, reverse)
    upstream = [torch.randn_like(out) for out in (y, *final, *trace)]
    torch.autograd.backward((y, *final, *trace), upstream)
    scan_y, scan_final, scan_trace, kept = run(
        name, gx, states, weights, lengths=lengths, resets=resets, reverse=reverse
    )
    for got, want in zip((scan_y, *scan_final, *scan_trace), (y, *final, *trace), strict=True):
        close(got, want.detach())

    S = len(states)
    dgx, dstates, dw_hh, db_hh, dw_hr = ext.reference_scan_backward(
        name, dy=upstream[0], dfinal=upstream[1 : S + 1], dtrace=upstream[S + 1 :], **kept
    )
    inputs = [
        gx,
        *states,
        *(w for w in (weights.w_hh, weights.b_hh, weights.w_hr) if w is not None),
    ]
    got_all = [dgx, *dstates, *(d for d in (dw_hh, db_hh, dw_hr) if d is not None)]
    for got, tensor in zip(got_all, inputs, strict=True):
        close(got, tensor.grad)


@pytest.mark.parametrize("name", BUILT_IN)
def test_float32_is_float64_rounded(name: str) -> None:
    spec = CELLS[name]
    P = 2 if spec.projected else H
    gx, weights = randn(T, B, spec.gates * H), [randn(spec.gates * H, P), randn(spec.gates * H)]
    weights += [randn(P, H)] if spec.projected else []
    states = [randn(B, P), randn(B, H)][: len(spec.states)]
    wide = ext.reference_scan_forward(name, gx, states, *weights)[0]
    narrow = ext.reference_scan_forward(
        name, gx.float(), [s.float() for s in states], *(w.float() for w in weights)
    )[0]
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-5)


def test_nothing_to_do_is_done() -> None:
    w_hh, h = randn(3 * H, H), randn(B, H)
    y, final, _, saved = ext.reference_scan_forward("gru", randn(0, B, 3 * H), [h], w_hh)
    assert y.shape == (0, B, H)
    assert saved.shape == (0, B, 4, H)
    close(final[0], h)
    y, final, _, _ = ext.reference_scan_forward("gru", randn(T, 0, 3 * H), [randn(0, H)], w_hh)
    assert y.shape == (T, 0, H)
    assert final[0].shape == (0, H)
    new, _ = ext.cell_forward("gru", randn(0, 3), randn(0, 3), randn(0, 1))
    assert new.shape == (0, 1)


def test_expanded_tensors_are_read_right() -> None:
    w_hh, row = randn(3 * H, H), randn(T, 1, 3 * H)
    expanded = ext.reference_scan_forward(
        "gru", row.expand(T, B, -1), [randn(1, H).expand(B, H)], w_hh
    )[0]
    close(expanded, expanded[:, :1].expand_as(expanded).clone())


# Bad input


def good_scan() -> dict[str, Any]:
    return {
        "name": "lstm",
        "gx": randn(T, B, 4 * H),
        "states": [randn(B, H), randn(B, H)],
        "w_hh": randn(4 * H, H),
        "b_hh": randn(4 * H),
    }


BAD_SCANS = [
    ({"name": "lstmm"}, ValueError, "unknown cell 'lstmm'; the cells are rnn_tanh, rnn_relu"),
    ({"gx": randn(B, 4 * H)}, ValueError, r"gx must have shape \[T, B, G\*H\]"),
    (
        {"gx": randn(T, B, 4 * H + 1)},
        ValueError,
        r"gx must have shape \[6, 4, 12\], got \[6, 4, 13\]",
    ),
    ({"gx": randn(T, B, 4 * H).float()}, TypeError, "gx must be Double, got Float"),
    ({"gx": randn(T, B, 4 * H).to("meta")}, ValueError, "gx must be on the CPU, got meta"),
    ({"gx": randn(T, B, 4 * H).to_sparse()}, ValueError, "gx must be dense"),
    ({"w_hh": randn(4 * H, H).half()}, TypeError, "must be Half|expected float32 or float64"),
    ({"w_hh": randn(4 * H)}, ValueError, r"w_hh must have shape \[4\*H, P\]"),
    ({"w_hh": randn(4 * H + 1, H)}, ValueError, r"w_hh must have shape \[4\*H, P\]"),
    ({"w_hh": randn(4 * H, H + 1)}, ValueError, "lstm: P must be H"),
    ({"w_hh": randn(0, 0)}, ValueError, "lstm: H must be positive"),
    ({"b_hh": randn(H)}, ValueError, r"b_hh must have shape \[12\]"),
    ({"w_hr": randn(H, H)}, ValueError, "lstm has no w_hr"),
    ({"states": [randn(B, H)]}, ValueError, "states must be 2 tensors, got 1"),
    ({"states": [randn(B, H), randn(H)]}, ValueError, r"states must have shape \[4, 3\]"),
    ({"states": randn(B, H)}, (ValueError, TypeError), "states|incompatible"),
    ({"lengths": torch.tensor([T, T, T, T + 1])}, ValueError, r"lengths must be in 0 .. 6"),
    ({"lengths": torch.tensor([T, T, T, -1])}, ValueError, r"lengths must be in 0 .. 6"),
    ({"lengths": torch.tensor([T])}, ValueError, r"lengths must have shape \[4\]"),
    ({"lengths": torch.ones(B)}, TypeError, "lengths must be Long, got Float"),
    ({"resets": torch.zeros(T, B)}, TypeError, "resets must be Bool, got Float"),
    (
        {"resets": torch.zeros(B, T, dtype=torch.bool)},
        ValueError,
        r"resets must have shape \[6, 4\]",
    ),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD_SCANS)
def test_a_bad_scan_is_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ext.reference_scan_forward(**{**good_scan(), **change})


def test_a_projected_scan_needs_its_projection() -> None:
    with pytest.raises(ValueError, match="lstm_proj needs w_hr"):
        ext.reference_scan_forward(
            "lstm_proj", randn(T, B, 4 * H), [randn(B, 2), randn(B, H)], randn(4 * H, 2)
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dy": randn(T, B, H + 1)}, r"dy must have shape \[6, 4, 3\]"),
        ({"y": randn(T + 1, B, H)}, r"y must have shape \[6, 4, 3\]"),
        ({"saved": randn(T, B, H)}, r"saved must have shape \[6, 4, 4, 3\]"),
        ({"trace": []}, "trace must be 1 tensors, got 0"),
        ({"dtrace": [randn(T, B, 1)]}, r"dtrace must have shape \[6, 4, 3\]"),
        ({"dfinal": [randn(B, H)]}, "dfinal must be 2 tensors, got 1"),
    ],
)
def test_a_bad_backward_is_refused(change: dict[str, Any], words: str) -> None:
    scan = good_scan()
    name, gx = scan.pop("name"), scan.pop("gx")
    y, final, trace, saved = ext.reference_scan_forward(name, gx, **scan)
    good = {
        "dy": y,
        "dfinal": final,
        "dtrace": trace,
        "y": y,
        "trace": trace,
        "saved": saved,
        **scan,
    }
    ext.reference_scan_backward(name, **good)
    with pytest.raises(ValueError, match=words):
        ext.reference_scan_backward(name, **{**good, **change})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            ("gru", randn(2, 4), randn(2, 3), randn(2, 1)),
            ValueError,
            r"gx must have shape \[2, 3\]",
        ),
        (
            ("gru", randn(2, 3), randn(3, 3), randn(2, 1)),
            ValueError,
            r"gh must have shape \[2, 3\]",
        ),
        (
            ("gru", randn(2, 3), randn(2, 3), randn(2)),
            ValueError,
            r"states must have shape \[2, 1\]",
        ),
        (("gru", randn(2, 3), randn(2, 3).float(), randn(2, 1)), TypeError, "gh must be Double"),
        (
            ("gru", *[torch.zeros(2, 3, dtype=torch.int64)] * 2, torch.zeros(2, 1).long()),
            TypeError,
            "float64",
        ),
        (("gru", randn(), randn(2, 3), randn(2, 1)), ValueError, "at least one axis"),
        (("gru_reset_before", randn(2, 3), randn(2, 3), randn(2, 1)), ValueError, "reference_scan"),
        (("no", randn(2, 3), randn(2, 3), randn(2, 1)), ValueError, "unknown cell 'no'"),
    ],
)
def test_a_bad_cell_call_is_refused(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ext.cell_forward(*arguments)
