"""Recurrent dropout, zoneout, weight dropout: loops with the same masks; a seed repeats them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rnnfast

from . import own_cells
from .cases import taking
from .layers import OWN, makers

T, B, I, H = 6, 3, 4, 5
LAYERS = makers(I, H, own=True)
MASKED = {name: make for name, make in LAYERS.items() if name != "three_states"}
OPTIONS: dict[str, dict] = {
    "recurrent": {"recurrent_dropout": 0.4},
    "zoneout": {"zoneout": 0.3},
    "weight": {"weight_dropout": 0.4},
    "all": {"recurrent_dropout": 0.4, "zoneout": 0.3, "weight_dropout": 0.2},
}
LSTMS = [*(("lstm", option) for option in OPTIONS), ("lstm_proj", "all")]
LENGTHS = torch.tensor([6, 0, 4])


def inputs(seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(T, B, I, dtype=torch.float64, generator=g)


def seeded(layer, *args, seed: int = 5, **kwargs):
    torch.manual_seed(seed)
    return layer(*args, **kwargs)


def flat(outputs) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor)]


def same(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def gradients(outputs, *wanted: Tensor) -> list[Tensor]:
    g = torch.Generator().manual_seed(9)
    loss = sum((o * torch.randn(o.shape, dtype=o.dtype, generator=g)).sum() for o in flat(outputs))
    return list(torch.autograd.grad(loss, wanted))


# --- against loops -------------------------------------------------------------------------------


def drawn(
    recurrent: float, zoneout: tuple[float, ...], outputs: int = H
) -> tuple[Tensor, list[Tensor]]:
    """The masks of one layer, one direction: for a sequence, then for each state and step."""
    ones = torch.ones(B, outputs, dtype=torch.float64)
    once = F.dropout(ones, recurrent) if recurrent else ones
    widths = (outputs, H)
    each = [
        torch.full((T, B, width), p, dtype=torch.float64)
        for p, width in zip(zoneout, widths, strict=False)
    ]
    return once, [torch.bernoulli(p) if bool((p > 0).any()) else p for p in each]


def lstm_loop(layer, x: Tensor, mask: Tensor, keep: list[Tensor]) -> Tensor:
    """By the formulas of Gal & Ghahramani 2016 and Krueger et al. 2017; h is what W_hr makes."""
    project = getattr(layer, "weight_hr_l0", torch.eye(H, dtype=x.dtype))
    h, c = (torch.zeros(B, width, dtype=x.dtype) for width in project.shape)
    ys = []
    for t in range(T):
        gates = F.linear(x[t], layer.weight_ih_l0, layer.bias_ih_l0)
        i, f, g, o = (
            gates + F.linear(mask * h, layer.weight_hh_l0, layer.bias_hh_l0)
        ).chunk(4, -1)  # fmt: skip
        new = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = keep[0][t] * h + (1 - keep[0][t]) * F.linear(o.sigmoid() * new.tanh(), project)
        c = keep[1][t] * c + (1 - keep[1][t]) * new
        ys.append(h)
    return torch.stack(ys)


def gru_loop(layer, x: Tensor, mask: Tensor, keep: list[Tensor]) -> Tensor:
    """The mask is on what is multiplied by W_hh; the state that is carried on is whole."""
    h = torch.zeros(B, H, dtype=x.dtype)
    ys = []
    for t in range(T):
        xr, xz, xn = F.linear(x[t], layer.weight_ih_l0, layer.bias_ih_l0).chunk(3, -1)
        hr, hz, hn = F.linear(mask * h, layer.weight_hh_l0, layer.bias_hh_l0).chunk(3, -1)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        new = (1 - z) * (xn + r * hn).tanh() + z * h
        h = keep[0][t] * h + (1 - keep[0][t]) * new
        ys.append(h)
    return torch.stack(ys)


def before_loop(layer, x: Tensor, mask: Tensor, keep: list[Tensor]) -> Tensor:
    h = torch.zeros(B, H, dtype=x.dtype)
    w_rz, w_n = layer.weight_hh_l0.split((2 * H, H))
    b_rz, b_n = layer.bias_hh_l0.split((2 * H, H))
    ys = []
    for t in range(T):
        x_rz, xn = F.linear(x[t], layer.weight_ih_l0, layer.bias_ih_l0).split((2 * H, H), -1)
        r, z = (x_rz + F.linear(mask * h, w_rz, b_rz)).sigmoid().chunk(2, -1)
        new = (1 - z) * (xn + F.linear(mask * r * h, w_n, b_n)).tanh() + z * h
        h = keep[0][t] * h + (1 - keep[0][t]) * new
        ys.append(h)
    return torch.stack(ys)


LOOPS = {
    "lstm": (lstm_loop, 2),
    "lstm_proj": (lstm_loop, 2),
    "own_lstm": (lstm_loop, 2),
    "gru": (gru_loop, 1),
    "own_gru": (gru_loop, 1),
    "gru_reset_before": (before_loop, 1),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("option", ["recurrent", "zoneout", "all"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_layer_is_the_papers_loop(name: str, option: str, training: bool) -> None:
    options = OPTIONS[option] | {"weight_dropout": 0.0}
    layer = LAYERS[name](**options).double().train(training)
    loop, states = LOOPS[name]
    x = inputs().requires_grad_()
    y, _ = seeded(layer, x)
    p = options.get("zoneout", 0.0)
    torch.manual_seed(5)
    outputs = layer.weight_hh_l0.shape[1]
    mask, keep = drawn(options.get("recurrent_dropout", 0.0), (p,) * states, outputs)
    if not training:
        mask, keep = torch.ones_like(mask), [torch.full_like(k, p) for k in keep]
    expected = loop(layer, x, mask, keep)
    same(y, expected)
    wanted = (x, *layer.parameters())
    same(gradients(y, *wanted), gradients(expected, *wanted))


@pytest.mark.parametrize("backend", taking(torch.float64))
@pytest.mark.parametrize("name", MASKED)
def test_weight_dropout_is_a_mask_on_the_weight(name: str, backend: str) -> None:
    layer = MASKED[name](weight_dropout=0.4, num_layers=2, bidirectional=True).double()
    x, twin = inputs(), MASKED[name](num_layers=2, bidirectional=True).double()
    torch.manual_seed(5)
    state = {
        n: F.dropout(w, 0.4) if "hh" in n and w.dim() > 1 else w
        for n, w in layer.state_dict().items()
    }
    twin.load_state_dict(state)
    with rnnfast.use_backend(backend):
        try:
            expected = twin(x)
        except rnnfast.BackendError as error:
            pytest.skip(str(error))
        for _ in range(2):
            same(seeded(layer, x), expected)
        layer.eval()
        twin.load_state_dict(layer.state_dict())
        for _ in range(2):  # also the short way of a call that torch served before
            same(layer(x), twin(x))
        layer.train()
        same(seeded(layer, x), seeded(layer, x))
        assert not torch.equal(layer(x)[0], layer(x)[0])


def test_zoneout_of_each_state() -> None:
    x = inputs()
    start = (torch.randn(1, B, H).double(), torch.randn(1, B, H).double())
    frozen = rnnfast.LSTM(I, H, zoneout=1.0).double()
    for training in (True, False):
        y, (h, c) = frozen.train(training)(x, start)
        same((h, c), start)
        same(y, start[0].expand(T, -1, -1))
    frozen.zoneout = (0.0, 1.0)  # may be changed, as dropout may
    _, (h, c) = frozen(x, start)
    same(c, start[1])
    assert not torch.equal(h, start[0])


# --- repeated by a seed, with all that a layer takes ---------------------------------------------


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", MASKED)
def test_a_seed_repeats_the_masks(name: str, option: str) -> None:
    """Compiled where all masks are there, which saves compiling each cell for each option."""
    with rnnfast.use_backend("auto" if option in ("all", "weight") else "reference"):
        _a_seed_repeats_the_masks(name, option)


def _a_seed_repeats_the_masks(name: str, option: str) -> None:
    layer = MASKED[name](num_layers=2, bidirectional=True, **OPTIONS[option]).double()
    plain = MASKED[name](num_layers=2, bidirectional=True).double()
    plain.load_state_dict(layer.state_dict())
    x = inputs()
    same(seeded(layer, x), seeded(layer, x))
    assert not torch.equal(seeded(layer, x)[0], seeded(layer, x, seed=6)[0])
    if "zoneout" not in OPTIONS[option]:
        same(layer.eval()(x), plain(x))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["gru", "peephole", "lstm_proj"])
def test_gradients_with_fixed_masks(name: str, option: str) -> None:
    layer = LAYERS[name](bidirectional=True, **OPTIONS[option]).double()
    x = inputs()[:3].requires_grad_()
    parameters = dict(layer.named_parameters())

    def run(x: Tensor, *values: Tensor) -> list[Tensor]:
        weights = dict(zip(parameters, values, strict=True))
        torch.manual_seed(5)
        return flat(torch.func.functional_call(layer, weights, (x,)))

    given = (x, *parameters.values())
    assert torch.autograd.gradcheck(run, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize(("name", "option"), LSTMS)
def test_checkpointing_has_the_same_masks(name: str, option: str) -> None:
    x = inputs().requires_grad_()
    whole, cut = (
        MASKED[name](num_layers=2, checkpoint_every=k, **OPTIONS[option]).double() for k in (0, 2)
    )
    cut.load_state_dict(whole.state_dict())
    found, expected = (
        gradients(seeded(layer, x), x, *layer.parameters()) for layer in (cut, whole)
    )
    same(found, expected)
    torch.manual_seed(5)
    y = checkpoint(whole, x, use_reentrant=False)
    same(gradients(y, x, *whole.parameters()), expected)


@pytest.mark.parametrize("option", ["all"])
@pytest.mark.parametrize("name", ["lstm", "lstm_proj", "peephole"])
def test_fullgraph(name: str, option: str) -> None:
    torch._dynamo.reset()
    layer = LAYERS[name](num_layers=2, **OPTIONS[option]).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = inputs().requires_grad_()
    found, expected = seeded(compiled, x), seeded(layer, x)
    same(flat(found), flat(expected))
    wanted = (x, *layer.parameters())
    same(gradients(found, *wanted), gradients(expected, *wanted))
    layer.eval()
    same(flat(compiled(x)), flat(layer(x)))


def test_an_exported_layer_in_evaluation() -> None:
    layer = rnnfast.Recurrent(own_cells.peephole, I, H, zoneout=0.2, recurrent_dropout=0.5).double()
    x = inputs()
    program = torch.export.export(layer.eval(), (x,))
    same(flat(program.module()(x)), flat(layer(x)))


def test_data_parallel_training(tmp_path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        layer = rnnfast.GRU(I, H, 2, **OPTIONS["all"]).double()
        parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(layer))
        x = inputs()
        expected = gradients(seeded(layer, x), *layer.parameters())
        g = torch.Generator().manual_seed(9)
        outputs = flat(seeded(parallel, x))
        sum(
            (o * torch.randn(o.shape, dtype=o.dtype, generator=g)).sum() for o in outputs
        ).backward()
        same([p.grad for p in parallel.parameters()], expected)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("name", "option"), LSTMS)
def test_layouts(name: str, option: str) -> None:
    given = {"num_layers": 2, "bidirectional": True, **OPTIONS[option]}
    layer = MASKED[name](**given).double()
    first = MASKED[name](batch_first=True, **given).double()
    P = layer.proj_size or H
    first.load_state_dict(layer.state_dict())
    x = inputs()
    y, hidden = seeded(layer, x)
    same(seeded(first, x.transpose(0, 1)), (y.transpose(0, 1), hidden))
    tokens = torch.randint(I, (T, B))
    same(seeded(layer, tokens), seeded(layer, F.one_hot(tokens, I).double()))
    with pytest.raises(IndexError, match="token out of range"):
        layer(tokens + I)
    _, _, every = seeded(layer, x, return_all_states=True)
    same(every.h[-1], y)
    lengths = torch.tensor([6, 1, 4])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths.sort(descending=True)[0])
    out, hidden = seeded(layer, packed)
    assert out.data.shape == (11, 2 * P)
    assert y.is_contiguous()
    assert layer(x[:, 0])[0].shape == (T, 2 * P)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_lengths_and_resets(training: bool) -> None:
    layer = rnnfast.LSTM(I, H, **OPTIONS["all"]).double().train(training)
    x = inputs()
    dirty = torch.where((torch.arange(T)[:, None] < LENGTHS).unsqueeze(-1), x, torch.nan)
    y, hidden = seeded(layer, dirty, lengths=LENGTHS)
    assert bool((y[4:, 2] == 0).all())
    whole, _ = seeded(layer, x)
    same(y[:4, 2], whole[:4, 2])
    same(hidden[0][0, 2], whole[3, 2])
    grads = gradients((y, hidden), *layer.parameters())
    assert all(bool(g.isfinite().all()) for g in grads)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[3] = True
    z, _ = seeded(layer, x, resets=resets)
    if not training:
        same(z[3:], layer(x[3:])[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_storage_and_autocast(dtype: torch.dtype) -> None:
    layer = rnnfast.LSTM(I, H, **OPTIONS["all"])
    x = inputs().float()
    exact = seeded(layer, x)[0].detach()
    bound = 16 * torch.finfo(dtype).eps
    with torch.autocast("cpu", dtype):
        y, (h, c) = seeded(layer, x)
    y.float().sum().backward()
    assert {t.dtype for t in (y, h, c)} == {dtype}
    narrow = copy.deepcopy(layer).to(dtype)
    narrow.weight_dropout = 0.0  # rounds its own way
    layer.weight_dropout = 0.0
    for found, reference in ((y, exact), (seeded(narrow, x.to(dtype))[0], seeded(layer, x)[0])):
        assert found.dtype == dtype
        assert float((found.float() - reference).detach().abs().max()) < bound


def test_vmap_needs_to_be_told_of_randomness() -> None:
    layer = rnnfast.GRU(I, H, **OPTIONS["all"]).double()
    x = torch.stack([inputs(0), inputs(1)])
    different = torch.vmap(lambda x: layer(x)[0], randomness="different")(x)
    assert different.shape == (2, T, B, H)
    layer.eval()
    found = torch.vmap(lambda x: layer(x)[0])(x)
    same(found, torch.stack([layer(one)[0] for one in x]))


# --- options and errors --------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKED)
def test_what_is_shown_kept_and_copied(name: str) -> None:
    layer = MASKED[name](recurrent_dropout=0.5, zoneout=0.1, weight_dropout=0.2).double()
    shown = "recurrent_dropout=0.5, zoneout=0.1, weight_dropout=0.2"
    assert shown in repr(layer)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        same(seeded(twin, inputs()), seeded(layer, inputs()))
    old = copy.deepcopy(layer)
    for option in ("recurrent_dropout", "zoneout", "weight_dropout"):
        del old.__dict__[option]  # of a pickle that is older than they are
    assert shown not in repr(old)
    old(inputs())


def test_options_that_make_no_sense() -> None:
    for option in ("recurrent_dropout", "zoneout", "weight_dropout"):
        for value, error in (
            (1.5, ValueError),
            (-0.1, ValueError),
            ("x", TypeError),
            (True, TypeError),
        ):
            with pytest.raises(error, match=option):
                rnnfast.GRU(I, H, **{option: value})
    with pytest.raises(ValueError, match=r"one for each of h, c, got: \(0.1,\)"):
        rnnfast.LSTM(I, H, zoneout=(0.1,))
    for option in ("recurrent_dropout", "weight_dropout"):
        with pytest.raises(ValueError, match="has no weight_hh"):
            rnnfast.Recurrent(OWN["three_states"], I, H, **{option: 0.5})
    rnnfast.Recurrent(OWN["three_states"], I, H, zoneout=0.5)(torch.randn(T, B, I))


def test_a_product_that_recurrent_dropout_does_not_know() -> None:
    with pytest.raises(rnnfast.StepError, match=r"recurrent_dropout knows w_hh .* not in einsum"):
        rnnfast.Recurrent(own_cells.heads, I, 6, recurrent_dropout=0.5)
    with pytest.raises(ValueError, match=r"recurrent_dropout: .*multipl"):
        rnnfast.Recurrent(unused, I, H, recurrent_dropout=0.5)
    twins = [
        rnnfast.Recurrent(cell, I, H, recurrent_dropout=0.5) for cell in (by_matmul, "rnn_tanh")
    ]
    twins[0].load_state_dict(twins[1].state_dict())
    x = inputs().float()
    torch.testing.assert_close(*(seeded(layer, x)[0] for layer in twins))


@rnnfast.cell(gates=1)
def unused(gx, states, w):
    return (gx + states[0],)


@rnnfast.cell(gates=1)
def by_matmul(gx, states, w):
    product = states[0] @ w.w_hh.t()
    return (torch.tanh(gx + product + (0 if w.b_hh is None else w.b_hh)),)


def test_explain_says_who_takes_masks() -> None:
    layer = rnnfast.LSTM(I, H, zoneout=(0.1, 0.0), recurrent_dropout=0.5)
    shown = str(rnnfast.explain(layer, torch.randn(T, B, I)))
    assert "lstm with recurrent_dropout, zoneout h" in shown
    assert "-> cpu: compiled from the step" in shown
    layer.eval()
    assert "lstm with zoneout h" in str(rnnfast.explain(layer, torch.randn(T, B, I)))
    with rnnfast.use_backend("torch"), pytest.raises(rnnfast.BackendError, match="zoneout h"):
        layer(torch.randn(T, B, I))
    layer.zoneout = 0.0
    assert "zoneout" not in str(rnnfast.explain(layer, torch.randn(T, B, I)))
