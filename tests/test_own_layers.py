"""Layers of cells of one's own: against the built-in ones, torch.nn and loops from scratch."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast.backends import registry

from . import own_cells
from .layers import OWN

T, B, I, H = 6, 3, 4, 5
SHAPES = ({}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 3, "bias": False})
SHAPE_IDS = ["one", "two-bidirectional", "three-nobias"]
TWINS = {"own_lstm": rnnfast.LSTM, "own_gru": rnnfast.GRU}
ENDS = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([6, 0, 4])},
    "resets": {"resets": torch.arange(T * B).view(T, B) % 4 == 3},
    "both": {
        "lengths": torch.tensor([6, 0, 4]),
        "resets": torch.arange(T * B).view(T, B) % 4 == 3,
    },
}


def make(cell: str, **kwargs) -> rnnfast.Recurrent:
    return rnnfast.Recurrent(OWN[cell], I, H, **kwargs).double()


def initial(layer) -> list[Tensor]:
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    states = len(layer._spec().states)
    return [torch.randn(rows, B, H, dtype=torch.float64) for _ in range(states)]


def flat(outputs) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor)]


def same(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def gradients(outputs: list[Tensor], *wanted: Tensor) -> list[Tensor]:
    g = torch.Generator().manual_seed(9)
    loss = sum((o * torch.randn(o.shape, dtype=o.dtype, generator=g)).sum() for o in outputs)
    return list(torch.autograd.grad(loss, wanted))


# --- against the built-in layers and torch.nn ----------------------------------------------------


@pytest.mark.parametrize("option", [{}, {"grad_clip_time": 0.05}, {"checkpoint_every": 2}], ids=str)
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("cell", TWINS)
def test_an_own_cell_is_the_built_in_one(cell: str, shape: dict, ends: str, option: dict) -> None:
    own, built_in = make(cell, **shape, **option), TWINS[cell](I, H, **shape, **option).double()
    built_in.load_state_dict(own.state_dict(), strict=True)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    states = [s.requires_grad_() for s in initial(own)]
    hx = tuple(states) if len(states) > 1 else states[0]
    outputs = [
        flat(layer(x, hx, **ENDS[ends], return_all_states=True)) for layer in (own, built_in)
    ]
    same(*outputs)
    found, expected = (
        gradients(out, x, *states, *layer.parameters())
        for out, layer in zip(outputs, (own, built_in), strict=True)
    )
    same(found, expected)


@pytest.mark.parametrize("cell", TWINS)
def test_a_seed_gives_torchs_weights_and_numbers(cell: str) -> None:
    name = cell.removeprefix("own_").upper()
    torch.manual_seed(4)
    theirs = getattr(nn, name)(I, H, 2, bidirectional=True)
    torch.manual_seed(4)
    ours = rnnfast.Recurrent(OWN[cell], I, H, 2, bidirectional=True)
    x = torch.randn(T, B, I)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["rnn_tanh", "rnn_relu", "lstm", "gru", "mgu", "gru_reset_before"])
def test_a_built_in_cell_by_name_or_spec(name: str) -> None:
    """Served as its own layer is, torch's kernels included."""
    for cell in (name, rnnfast.CELLS[name]):
        layer = rnnfast.Recurrent(cell, I, H, num_layers=2)
        x = torch.randn(T, B, I)
        with torch.no_grad(), rnnfast.use_backend("reference"):
            expected = layer(x)
        for backend in ("auto", "cpu"):
            with rnnfast.use_backend(backend):
                for _ in range(2):
                    torch.testing.assert_close(layer(x), expected)
    same(copy.deepcopy(layer)(x), layer(x))
    assert copy.deepcopy(layer).cell is layer.cell


# --- against loops -------------------------------------------------------------------------------


def peephole_loop(layer, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, by Gers & Schmidhuber's formulas, one sequence and one step at a time."""
    w, p = layer.weight_ih_l0, layer.weight_hh_l0
    bias = layer.bias_ih_l0 + layer.bias_hh_l0
    ys, hs, cs = [], [], []
    for b in range(x.shape[1]):
        hb, cb, out = h[b], c[b], []
        for t in range(x.shape[0]):
            i, f, g, o = (w @ x[t, b] + p @ hb + bias).view(4, H)
            i = 1 / (1 + torch.exp(-(i + layer.w_ci_l0 * cb)))
            f = 1 / (1 + torch.exp(-(f + layer.w_cf_l0 * cb)))
            cb = f * cb + i * torch.tanh(g)
            hb = torch.tanh(cb) / (1 + torch.exp(-(o + layer.w_co_l0 * cb)))
            out.append(hb)
        ys.append(torch.stack(out))
        hs.append(hb)
        cs.append(cb)
    return torch.stack(ys, 1), torch.stack(hs), torch.stack(cs)


def test_the_peephole_lstm_against_a_loop() -> None:
    layer = make("peephole")
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    h, c = (s.requires_grad_() for s in initial(layer))
    y, (hn, cn) = layer(x, (h, c))
    expected = peephole_loop(layer, x, h[0], c[0])
    same([y, hn[0], cn[0]], list(expected))
    wanted = (x, h, c, *layer.parameters())
    same(gradients([y, hn[0], cn[0]], *wanted), gradients(list(expected), *wanted))


def test_three_states_and_no_recurrent_weight_against_a_loop() -> None:
    layer = make("three_states", bidirectional=True)
    assert [n for n, _ in layer.named_parameters()][:3] == ["weight_ih_l0", "bias_ih_l0", "mix_l0"]
    same(layer.mix_l0.detach(), torch.eye(H, dtype=torch.float64))  # its own init
    x = torch.randn(T, B, I, dtype=torch.float64)
    start = initial(layer)
    y, final, every = layer(x, tuple(start), return_all_states=True)
    assert list(every) == ["h", "s", "n"]
    for d, suffix in enumerate(("", "_reverse")):
        w, b, mix = (getattr(layer, f"{n}_l0{suffix}") for n in ("weight_ih", "bias_ih", "mix"))
        h, s, n = (state[d] for state in start)
        part = slice(d * H, (d + 1) * H)
        for t in range(T - 1, -1, -1) if d else range(T):
            i, f = (x[t] @ w.t() + b).chunk(2, -1)
            f = f.sigmoid()
            s = f * s + (1 - f) * torch.tanh(i + h @ mix.t())
            n = f * n + 1 - f
            h = s / (1 + n.abs())
            for name, state in zip("hsn", (h, s, n), strict=True):
                same(every[name][0][t, :, part], state)
            same(y[t, :, part], h)
        same([state[d] for state in final], [h, s, n])


def test_a_block_diagonal_cell_with_a_setting() -> None:
    layer = rnnfast.Recurrent(own_cells.heads, I, 6, heads=3).double()
    assert layer.weight_hh_l0.shape == (3, 2, 2)
    theirs = rnnfast.RNN(I, 6).double()
    state = layer.state_dict()
    dense = torch.block_diag(*state["weight_hh_l0"])
    theirs.load_state_dict({**state, "weight_hh_l0": dense})
    x = torch.randn(T, B, I, dtype=torch.float64)
    same(layer(x), theirs(x))
    assert "[heads=3]" in repr(layer)
    assert rnnfast.Recurrent(own_cells.heads, I, 6).weight_hh_l0.shape == (2, 3, 3)


# --- all that a layer takes ----------------------------------------------------------------------


@pytest.mark.parametrize("cell", OWN)
def test_layouts_tokens_and_packing(cell: str) -> None:
    layer = make(cell, num_layers=2, bidirectional=True)
    first = make(cell, num_layers=2, bidirectional=True, batch_first=True)
    first.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    y, hn = layer(x)
    same(first(x.transpose(0, 1)), (y.transpose(0, 1), hn))
    lone, lone_hn = layer(x[:, 1])
    same(lone, y[:, 1])
    same(flat(lone_hn), [s[:, 1] for s in flat(hn)])
    tokens = torch.randint(I, (T, B))
    same(layer(tokens), layer(nn.functional.one_hot(tokens, I).double()))
    lengths = torch.tensor([2, 6, 4])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    by_lengths, hn = layer(x, lengths=lengths)
    out, packed_hn = layer(packed, layer._zero_states(x))
    same(nn.utils.rnn.pad_packed_sequence(out)[0], by_lengths)
    same(packed_hn, hn)


def test_dropout_between_layers_is_torchs() -> None:
    layer = make("own_gru", num_layers=3, dropout=0.5)
    theirs = nn.GRU(I, H, 3, dropout=0.5).double()
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.manual_seed(3)
    expected = theirs(x)
    torch.manual_seed(3)
    same(layer(x), expected)


def test_wrong_states_are_named() -> None:
    layer = make("three_states", num_layers=2)
    x = torch.randn(T, B, I, dtype=torch.float64)
    h = torch.zeros(2, B, H, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"hx as a tuple \(h_0, s_0, n_0\), got a tensor \[2, 3, 5"
    ):
        layer(x, h)
    with pytest.raises(ValueError, match="got 2 items"):
        layer(x, (h, h))
    with pytest.raises(
        RuntimeError, match=r"Expected hidden\[2\] size \(2, 3, 5\), got \[2, 3, 4\]"
    ):
        layer(x, (h, h, h[..., :4]))
    with pytest.raises(RuntimeError, match=r"hx and sx and nx should also be 3-D .*3-D, 2-D, 3-D"):
        layer(x, (h, h[0], h))


def test_a_scan_checks_the_weights_of_an_own_cell() -> None:
    layer = make("peephole")
    x, (h, c) = torch.randn(T, B, I, dtype=torch.float64), (s[0] for s in initial(layer))
    weights = list(layer.parameters())
    found = rnnfast.scan(own_cells.peephole.name, x, [h, c], weights)
    same(found.y, layer(x, (h[None], c[None]))[0])
    gates = nn.functional.linear(x, weights[0], weights[2])
    same(
        rnnfast.scan(
            own_cells.peephole.name, gates, [h, c], weights[1:2] + weights[3:], projected=True
        ).y,
        found.y,
    )
    for index, word in ((0, "w_ih"), (1, "w_hh"), (3, "b_hh"), (4, "w_ci")):
        wrong = [w[:-1] if k == index else w for k, w in enumerate(weights)]
        with pytest.raises(RuntimeError, match=f"{word} should be"):
            rnnfast.scan(own_cells.peephole.name, x, [h, c], wrong)
    with pytest.raises(ValueError, match=r"w_ih, w_hh, b_ih, b_hh, w_ci, w_cf, w_co .*got 6"):
        rnnfast.scan(own_cells.peephole.name, x, [h, c], weights[:-1])


@pytest.mark.parametrize("cell", OWN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_storage_and_autocast(cell: str, dtype: torch.dtype) -> None:
    layer = rnnfast.Recurrent(OWN[cell], I, H)
    x = torch.randn(T, B, I)
    exact = layer(x)[0].detach()
    bound = 8 * torch.finfo(dtype).eps
    with torch.autocast("cpu", dtype):
        y, _ = layer(x)
        z, _, every = layer(x, return_all_states=True)
    assert {t.dtype for t in (y, z, *flat(every))} == {dtype}
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in layer.parameters())
    narrow = copy.deepcopy(layer).to(dtype)
    for found in (y, narrow(x.to(dtype))[0]):
        assert found.dtype == dtype
        assert float((found.float() - exact).detach().abs().max()) < bound


# --- kept, copied, moved -------------------------------------------------------------------------


@pytest.mark.parametrize("cell", OWN)
def test_copies_pickles_and_moves(cell: str) -> None:
    layer = rnnfast.Recurrent(OWN[cell], I, H, 2, bidirectional=True, grad_clip_time=0.5)
    x = torch.randn(T, B, I)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert twin.cell is layer.cell
        assert repr(twin) == repr(layer)
        same(twin(x), layer(x))
    assert layer.double().weight_ih_l0.dtype == torch.float64
    torch.testing.assert_close(layer(x.double())[0].float(), layer.float()(x)[0])
    empty = rnnfast.Recurrent(OWN[cell], I, H, device="meta")
    assert layer.to("meta")(x.to("meta"))[0].shape == (T, B, 2 * H)
    assert empty(x.to("meta"))[0].is_meta
    torch.manual_seed(1)
    filled = empty.to_empty(device="cpu")
    filled.reset_parameters()
    torch.manual_seed(1)
    twin = rnnfast.Recurrent(OWN[cell], I, H)
    same(dict(filled.state_dict()), dict(twin.state_dict()))


def test_a_pickle_of_another_process(tmp_path) -> None:
    layer = rnnfast.Recurrent(own_cells.heads, I, 6, heads=3)
    path = tmp_path / "layer.pt"
    torch.save((layer, layer(torch.ones(T, B, I))), path)
    code = (
        "import sys, torch\n"
        "layer, (y, h) = torch.load(sys.argv[1], weights_only=False)\n"
        "assert layer.cell.settings == (('heads', 3),)\n"
        f"torch.testing.assert_close(layer(torch.ones({T}, {B}, {I})), (y, h))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_functional_call_and_parametrizations() -> None:
    layer = make("peephole")
    x = torch.randn(T, B, I, dtype=torch.float64)
    other = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    found = torch.func.functional_call(layer, other, (x,))
    twin = make("peephole")
    twin.load_state_dict(other)
    same(found, twin(x))
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    layer.reset_parameters()
    assert layer(x)[0].shape == (T, B, H)


def test_a_layer_says_what_it_is() -> None:
    layer = rnnfast.Recurrent(
        own_cells.peephole, I, H, 2, bias=False, dropout=0.5, bidirectional=True, checkpoint_every=3
    )
    name = own_cells.peephole.name
    assert repr(layer) == (
        f"Recurrent({name}, 4, 5, num_layers=2, bias=False, dropout=0.5, bidirectional=True, "
        "checkpoint_every=3)"
    )
    assert repr(rnnfast.RecurrentCell(own_cells.peephole, I, H)) == f"RecurrentCell({name}, 4, 5)"


# --- who serves it -------------------------------------------------------------------------------


def test_explain_names_who_refuses_and_why() -> None:
    layer = rnnfast.Recurrent(own_cells.peephole, I, H)
    shown = str(rnnfast.explain(layer, torch.randn(T, B, I)))
    assert "-> cpu: compiled from the step" in shown
    for name in registry.BACKENDS:
        if name in ("reference", "cpu") or registry.BACKENDS[name].unusable():
            continue
        with rnnfast.use_backend(name), pytest.raises(rnnfast.BackendError, match="cell"):
            layer(torch.randn(T, B, I))


# --- one step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", OWN)
def test_a_cell_in_a_loop_is_the_layer(cell: str, bias: bool) -> None:
    step = rnnfast.RecurrentCell(OWN[cell], I, H, bias).double()
    layer = make(cell, bias=bias)
    layer.load_state_dict({f"{name}_l0": w for name, w in step.state_dict().items()})
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    hx, ys = None, []
    for t in range(T):
        hx = step(x[t], hx)
        ys.append(flat(hx)[0])
    y, hn = layer(x)
    same(torch.stack(ys), y)
    same(flat(hx), [s[0] for s in flat(hn)])
    wanted = (x, *step.parameters())
    same(gradients([y], x, *layer.parameters()), gradients([torch.stack(ys)], *wanted))
    same(flat(step(x[0, 1])), [s[1] for s in flat(step(x[0]))])


def test_a_cell_is_torchs_where_torch_has_it() -> None:
    torch.manual_seed(2)
    theirs = nn.LSTMCell(I, H)
    torch.manual_seed(2)
    ours = rnnfast.RecurrentCell(own_cells.lstm, I, H)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    x, hx = torch.randn(B, I), (torch.randn(B, H), torch.randn(B, H))
    torch.testing.assert_close(ours(x, hx), theirs(x, hx))
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(rnnfast.RecurrentCell("gru", I, H)(x).shape, torch.Size([B, H]))
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert twin.cell is ours.cell
        torch.testing.assert_close(twin(x, hx), theirs(x, hx))


def test_a_cells_bad_calls() -> None:
    step = rnnfast.RecurrentCell(own_cells.lstm, I, H)
    with pytest.raises(ValueError, match="Expected input to be 1D or 2D, got 3D"):
        step(torch.randn(1, B, I))
    with pytest.raises(RuntimeError, match="inconsistent input_size: got 3 expected 4"):
        step(torch.randn(B, 3))
    with pytest.raises(ValueError, match=r"hx as a tuple \(h_0, c_0\), got a tensor \[3, 5\]"):
        step(torch.randn(B, I), torch.randn(B, H))
    with pytest.raises(RuntimeError, match=r"hidden size \(3, 5\) of c, got \[3, 4\]"):
        step(torch.randn(B, I), (torch.randn(B, H), torch.randn(B, 4)))


def test_a_cell_compiles_and_transforms() -> None:
    torch._dynamo.reset()
    step = rnnfast.RecurrentCell(own_cells.peephole, I, H).double()
    x, hx = torch.randn(B, I).double(), tuple(torch.randn(2, B, H).double())
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    same(compiled(x, hx), step(x, hx))
    by_row = torch.vmap(step)(x, hx)
    same(by_row, step(x, hx))


def test_the_flops_of_an_own_cell_are_those_of_its_products() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    products = {"peephole": 4 * H * (I + H), "three_states": 2 * H * I + H * H}
    for name, multiplied in products.items():
        layer = rnnfast.Recurrent(OWN[name], I, H)
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(T, B, I))
        assert counter.get_total_flops() == 2 * T * B * multiplied, name


def test_the_tests_of_built_in_cells_have_only_these() -> None:
    from .cases import BUILT_IN

    assert not any(rnnfast.CELLS[name].own for name in BUILT_IN)
    assert all(cell.name in rnnfast.CELLS for cell in itertools.chain(OWN.values()))


def test_skip_init_and_dynamic_sizes() -> None:
    layer = nn.utils.skip_init(rnnfast.Recurrent, own_cells.peephole, I, H)
    layer.reset_parameters()
    sizes = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}
    program = torch.export.export(layer, (torch.randn(4, 3, I),), dynamic_shapes=(sizes,))
    x = torch.randn(9, 4, I)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_a_step_may_be_anything_that_can_be_called() -> None:
    def scaled(scale: float, gx: Tensor, states: tuple[Tensor, ...], w: object) -> tuple[Tensor]:
        return (torch.tanh(scale * gx + states[0]),)

    cell = rnnfast.cell(functools.partial(scaled, 0.5), gates=1, recurrent=None)
    try:
        y, _ = rnnfast.Recurrent(cell, I, H)(torch.randn(T, B, I))
        assert y.shape == (T, B, H)
    finally:
        del rnnfast.CELLS[cell.name]
