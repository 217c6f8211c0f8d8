"""Compiled cells of one's own against the loop in plain torch: outputs, states, every gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

import rnnfast
from rnnfast import library
from rnnfast.backends import own_cpu, own_saved, registry
from rnnfast.cells import CELLS, CellSpec
from rnnfast.direct import run_direct
from rnnfast.problem import Options, Scan, problem_of
from rnnfast.scratch import scratch_scan
from rnnfast.steps import run
from rnnfast.steps.graph import ordered
from tests import own_cells
from tests.test_cpu import saved_bytes

pytestmark = pytest.mark.skipif(
    library.why_not() is not None, reason=f"nothing compiles here: {library.why_not()}"
)


@rnnfast.cell(gates=3, states=("h", "c"), params={"u": "H", "t": "1", "m": "2*H, H", "k": "H, H"})
def everything(gx, states, w):
    """Two products, one after the other, of a sum and of parts; reductions in three stages."""
    h, c = states
    H = h.shape[-1]
    a = gx.view(-1, 3, H)
    p = torch.softmax(a[:, 0], -1) * w.t + F.rms_norm(h, (H,), eps=1e-5)
    q = F.linear(torch.cat([p[:, : H // 2], F.gelu(h)[:, H // 2 :]], -1), w.m)
    left, right = q.split(H, -1)
    m = a.mean(1) + a.amax(-1).sum(-1, keepdim=True)
    s = F.silu(left) * F.softplus(right) + torch.where(m > 0, m, torch.sin(m) ** 2) + F.elu(h @ w.k)
    c = torch.sigmoid(c * w.u).clamp(0.2, 0.7) * c + torch.log1p(torch.exp(-h.abs()))
    new = torch.tanh(s + (h * w.u).clamp(-1, 1)) * c + F.leaky_relu(m) * h.mean(-1, keepdim=True)
    return new, F.layer_norm(c, (H,), eps=0.1)


@rnnfast.cell(gates=2, states=("h", "c", "g"), params={"p": "H"})
def handed(gx, states, w):
    """States that are what was read, or made of a mask."""
    h, c, g = states
    a, b = gx.chunk(2, -1)
    t = torch.tanh(b + F.linear(h, w.w_hh[: h.shape[-1]]) * (g > 0))
    return c * torch.sigmoid(t * a), t * w.p, a


@rnnfast.cell(gates=1, states=("h", "c"), params={"m": "H, H"})
def product_last(gx, states, w):
    """The output is a product, as an LSTM's with a projection."""
    h, c = states
    c = torch.tanh(gx + F.linear(h, w.w_hh)) + 0.5 * c
    return F.linear(c, w.m), c


CELLS_HERE: list[CellSpec] = [
    own_cells.lstm,
    own_cells.gru,
    own_cells.peephole,
    own_cells.three_states,
    own_cells.heads,
    CELLS["layer_norm_lstm"],
    everything,
    handed,
    product_last,
]
LENGTHS, T, B, I, H = [6, 0, 3, 1, 5], 6, 5, 3, 12
CALLS = {
    "plain": {},
    "all states": {"all_states": True},
    "reversed": {"reverse": True, "all_states": True},
    "ends and resets": {"ends": True, "all_states": True},
    "reversed ends and resets": {"ends": True, "reverse": True},
    "clipped in time": {"grad_clip_time": 0.2, "ends": True},
    "zeroed in time": {"grad_clip_time": -0.3, "reverse": True},
    "checkpointed": {"checkpoint_every": 4, "ends": True},
    "one sequence": {"B": 1},
    "one step": {"T": 1},
    "no sequence": {"B": 0},
    "tokens": {"kind": "tokens", "ends": True},
    "gates": {"kind": "gates"},
    "strided": {"strided": True, "ends": True},
}


def scan_of(
    spec: CellSpec,
    dtype: torch.dtype = torch.float64,
    *,
    T: int = T,
    B: int = B,
    H: int = H,
    kind: str = "dense",
    bias: bool = True,
    ends: bool = False,
    strided: bool = False,
    positive: bool = False,
    nudge: int = 0,
    **options: float,
) -> Scan:
    """``nudge``: as in tests/cases.py."""
    make, moves = torch.Generator().manual_seed(3), torch.Generator().manual_seed(nudge)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        shape = (*shape, 2) if strided else shape
        tensor = torch.randn(shape, generator=make, dtype=torch.float64) * scale
        if nudge:
            moved = torch.rand(shape, generator=moves, dtype=torch.float64) - 0.5
            tensor *= 1 + moved * torch.finfo(dtype).eps
        tensor = tensor.to(dtype)
        return (tensor[..., 0] if strided else tensor).requires_grad_()

    weights = []
    for name in spec.weight_names(kind, bias):
        shape = (spec.gates * H, I) if name == "w_ih" else spec.weight_shape(name, H)
        weights.append(random(*shape, scale=H**-0.5))
    input = random(T, B, I if kind == "dense" else spec.gates * H)
    if kind == "tokens":
        input = torch.randint(0, I, (T, B), generator=make)
    lengths = torch.tensor(LENGTHS[:B]).clamp(max=T) if ends else None
    resets = torch.rand(T, B, generator=make) < 0.3 if ends else None
    states = [random(B, H, scale=0.5) for _ in spec.states]
    if positive:
        states = [state.detach().abs().requires_grad_() for state in states]
    return Scan(
        spec.name, kind, input, states, weights, lengths, resets, Options(training=True, **options)
    )


def on(scan: Scan, device: str) -> Scan:
    """The same scan there."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.detach().to(device).requires_grad_(tensor.requires_grad)

    return scan._replace(
        input=moved(scan.input),
        states=[moved(t) for t in scan.states],
        weights=[moved(t) for t in scan.weights],
        lengths=moved(scan.lengths),
        resets=moved(scan.resets),
    )


def results(scan: Scan, how: str) -> list[Tensor]:
    """Outputs, states and gradients; padding of the input is no number."""
    if scan.lengths is not None and scan.kind == "dense":
        past = torch.arange(scan.input.shape[0], device=scan.input.device)[:, None] >= scan.lengths
        scan = scan._replace(
            input=scan.input.detach().masked_fill(past[..., None], torch.nan).requires_grad_()
        )
    if how == "loop":
        y, final, trace = scratch_scan(scan)
    else:
        y, final, trace = run_direct(scan, registry.select(problem_of(scan), how))
    outputs = [y, *final, *trace]
    make = torch.Generator().manual_seed(4)
    given = [torch.randn(o.shape, generator=make, dtype=torch.float64).to(o) for o in outputs]
    sources = [t for t in scan.tensors if t.requires_grad]
    found = torch.autograd.grad(outputs, sources, given, allow_unused=True)
    zeros = (torch.zeros_like(t) for t in sources)
    return [
        *(o.detach() for o in outputs),
        *(z if d is None else d for d, z in zip(found, zeros, strict=True)),
    ]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if b.numel():
            error = (a.double() - b.double()).abs().max()
            assert error <= tolerance * b.double().abs().max() + 1e-13, (error, b.abs().max())


def check(spec: CellSpec, dtype: torch.dtype, how: str, device: str = "cpu", **call: Any) -> None:
    """Against the loop in float64, by the loop's own error in ``dtype``, also of numbers that are
    rounded otherwise: of some steps that alone moves the gradients far."""
    call["positive"] = spec.name == "slstm"  # whose last state is what it divides by
    exact = results(scan_of(spec, **call), "loop")
    scan = scan_of(spec, dtype, **call)
    loops = [results(scan_of(spec, dtype, nudge=n, **call), "loop") for n in range(4)]
    found = results(on(scan, device), how)
    largest = [float(true.abs().max()) if true.numel() else 0.0 for true in exact]
    # a gradient that is one number is a sum whose terms, of about 1, cancel one another
    largest = [
        max(size, float(true.numel() == 1)) for size, true in zip(largest, exact, strict=True)
    ]
    errors = [
        float((plain.double() - true).abs().max()) / size
        for loop in loops
        for plain, true, size in zip(loop, exact, largest, strict=True)
        if size > 0
    ]
    allowed = 2 * max(errors, default=0.0) + 4 * torch.finfo(dtype).eps
    if spec is everything and how == "triton":
        # the interpreter's exp and log are numpy's, off by up to three times what torch's are, and
        # this step's gradients magnify that by some twenty
        allowed = max(allowed, 1e-5)
    for value, true, size in zip(found, exact, largest, strict=True):
        assert value.dtype == dtype
        if true.numel():
            assert (value.cpu().double() - true).abs().max() <= allowed * size


@pytest.fixture(autouse=True)
def _poisoned(poisoned: object) -> None:
    """What a kernel forgets to write shows."""


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("spec", CELLS_HERE, ids=lambda spec: spec.name.rpartition(":")[2])
def test_a_compiled_cell_is_the_loop(spec: CellSpec, call: str) -> None:
    scan = scan_of(spec, **CALLS[call])
    assert_close(results(scan, "cpu"), results(scan, "loop"), 1e-10)


@pytest.mark.parametrize("spec", CELLS_HERE, ids=lambda spec: spec.name.rpartition(":")[2])
def test_without_bias(spec: CellSpec) -> None:
    scan = scan_of(spec, bias=False)
    assert_close(results(scan, "cpu"), results(scan, "loop"), 1e-10)


@pytest.mark.parametrize("spec", CELLS_HERE, ids=lambda spec: spec.name.rpartition(":")[2])
@pytest.mark.parametrize("H", [1, 8, 34])
def test_odd_sizes_in_float32(spec: CellSpec, H: int) -> None:
    if H == 1 and spec in (everything, own_cells.heads):
        pytest.skip("these need an even number of units")
    check(spec, torch.float32, "cpu", H=H, ends=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_storage_is_computed_in_float32(dtype: torch.dtype) -> None:
    scan = scan_of(own_cells.peephole, dtype, ends=True, all_states=True)
    assert_close(results(scan, "cpu"), results(scan, "loop"), 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("spec", [own_cells.lstm, own_cells.gru], ids=["lstm", "gru"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_more_is_saved_than_of_the_built_in_cell(spec: CellSpec, dtype: torch.dtype) -> None:
    """And than torch.nn saves."""
    ours = rnnfast.Recurrent(spec, I, H)
    built_in, torchs = (rnnfast.LSTM, nn.LSTM) if spec is own_cells.lstm else (rnnfast.GRU, nn.GRU)
    x = torch.randn(T, B, I).to(dtype)
    with rnnfast.use_backend("cpu"):
        found, expected = (saved_bytes(one.to(dtype), x) for one in (ours, built_in(I, H)))
    assert found == expected
    assert found <= saved_bytes(torchs(I, H).to(dtype), x)


@pytest.mark.parametrize("spec", CELLS_HERE, ids=lambda spec: spec.name.rpartition(":")[2])
def test_what_16_bit_storage_saves_has_its_precision(spec: CellSpec) -> None:
    """A number of float16 for each that float32 would save, or fixed point; sums of rows apart."""
    wide, scan = (scan_of(spec, dtype, ends=True) for dtype in (torch.float32, torch.float16))
    expected, found = (results(one, "cpu") for one in (wide, scan))
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b.double()).abs().max() <= 0.01 * b.double().abs().max() + 1e-3
    (kept, whole) = (
        sum(math.prod(shape) * dtype.itemsize for shape, dtype in own_cpu.saved_like(problem))
        for problem in (problem_of(scan), problem_of(wide))
    )
    layout = run.kernel(spec.name, H, True, torch.float32).layout
    assert kept <= whole / 2 + 2 * T * B * layout.widths["scalars"]


def test_fixed_point_keeps_its_ends_and_nan() -> None:
    ends = torch.tensor([-1.0, 0.0, 1.0, torch.nan])
    values = torch.cat([ends, torch.linspace(-1, 1, 1001)])
    kept = own_saved.to_fixed(values)
    assert kept.dtype == torch.int16
    found = own_saved.from_fixed(kept, torch.float32)
    assert torch.equal(found[:4].nan_to_num(7), ends.nan_to_num(7))
    assert (found[4:] - values[4:]).abs().max() <= 1.6e-5


@pytest.mark.parametrize("spec", CELLS_HERE, ids=lambda spec: spec.name.rpartition(":")[2])
def test_results_do_not_depend_on_the_threads(spec: CellSpec, threads: None) -> None:
    """Bit for bit: one thread, two that share the batch, two that share the hidden units."""
    kernel = run.kernel(spec.name, 36, True, torch.float64)
    assert not isinstance(kernel, str), kernel
    found = []
    for rows, units in ((1, 1), (2, 1), (1, 2), (2, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run.Kernel, "split", lambda _, B, r=rows, u=units: (r, u, ""))
            found.append(results(scan_of(spec, H=36, ends=True), "cpu"))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert torch.equal(a, b)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@rnnfast.cell(gates=2, recurrent=None)
def functions(gx, states, w):
    (h,) = states
    a, b = gx.chunk(2, -1)
    s = a.abs() + 0.1
    found = torch.exp(a) + torch.exp2(b) + torch.expm1(a) + torch.log(s) + torch.log2(s)
    found = found + torch.log10(s) + torch.log1p(s) + torch.sqrt(s) + torch.rsqrt(s)
    found = found + torch.erf(a) + torch.sin(a) * torch.cos(b) + torch.sinh(a) + torch.cosh(b)
    found = found + torch.atan(a) + s**1.7 + s**b + torch.floor(b) + torch.ceil(b) + torch.round(a)
    found = (
        found
        + torch.atan2(a, b)
        + torch.fmod(a, s)
        + torch.trunc(a)
        + torch.sign(b)
        + F.softplus(a)
        + F.logsigmoid(b)
        + F.relu(a)
    )
    found = (
        found + torch.maximum(a, b) + torch.minimum(a, h) + torch.where((a > b) | ~(b < 0), a, h)
    )
    reduced = torch.exp(b.amax(-1, keepdim=True)) * torch.sigmoid(a.mean(-1, keepdim=True))
    return (found * 0.1 + reduced * torch.tanh(h),)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_function_is_torchs(dtype: torch.dtype) -> None:
    scan = scan_of(functions, dtype, T=2, B=40, H=19)
    assert_close(
        results(scan, "cpu"), results(scan, "loop"), 1e-10 if dtype.itemsize == 8 else 2e-6
    )


@rnnfast.cell(gates=1, recurrent=None)
def far_out(gx, states, w):
    return (torch.exp(gx) + F.softplus(states[0]) + torch.maximum(gx, states[0]),)


def test_what_is_far_out_or_no_number_is_as_in_torch() -> None:
    values = [0.0, -0.0, 88.0, 89.0, 150.0, -88.0, -104.0, -150.0, torch.inf, -torch.inf, torch.nan]
    scan = scan_of(far_out, torch.float32, T=1, B=1, H=len(values), kind="gates")
    line = torch.tensor(values)
    scan = scan._replace(input=line.view(1, 1, -1), states=[line.flip(0)[None]])
    options = scan.options._replace(training=False)
    scan = scan._replace(options=options)
    (found, _, _), _ = own_cpu.forward(scan)
    expected = scratch_scan(scan).y
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-37, equal_nan=True)


@rnnfast.cell(gates=1, recurrent=None)
def rolled(gx, states, w):
    """Parts of gx that overlap one another are read by backward."""
    return (torch.tanh(gx * torch.roll(gx, 1, -1) + states[0]),)


@rnnfast.cell(gates=1, recurrent=None)
def divided(gx, states, w):
    """Backward divides by what lies in [0, 1] and may be small."""
    return (torch.tanh(torch.log(torch.sigmoid(gx)) * 0.1 + states[0] * 0.5),)


@rnnfast.cell(gates=1, params={"p": "H"}, recurrent=None)
def largest_of_a_sum(gx, states, w):
    u = states[0] * w.p
    x = u + gx
    return (torch.tanh(x - x.amax(-1, keepdim=True)) * u + torch.tanh(gx),)


@pytest.mark.parametrize("spec", [rolled, divided], ids=["rolled", "divided"])
def test_what_16_bit_storage_saves_is_all_that_is_read(spec: CellSpec) -> None:
    wide, scan = (scan_of(spec, dtype, H=128) for dtype in (torch.float32, torch.bfloat16))
    input = torch.linspace(-14, 2, scan.input.numel()).view_as(scan.input)
    wide, scan = (
        one._replace(kind="gates", input=given.requires_grad_(), weights=[])
        for one, given in (
            (wide, _of_gates(input, torch.float32)),
            (scan, _of_gates(input, torch.bfloat16)),
        )
    )
    expected, found = results(wide, "cpu"), results(scan, "cpu")
    for a, b in zip(found, expected, strict=True):
        assert bool(a.isfinite().all())
        assert (a.double() - b.double()).abs().max() <= 0.03 * b.double().abs().max()


def _of_gates(input: Tensor, dtype: torch.dtype) -> Tensor:
    return input.repeat(1, 1, 43)[..., :128].to(dtype).contiguous()


def test_the_argument_of_a_largest_is_saved() -> None:
    """Made again in two loops it may be rounded in two ways, and then nobody is the largest."""
    layout = run.kernel(largest_of_a_sum.name, 12, True, torch.float32).layout
    stored = [store.node for stage in layout.forward.stages for store in stage.stores]
    (top,) = {n for n in ordered(stored) if n.op == "rmax"}
    assert top.args[0] in stored
    assert_close(
        results(scan_of(largest_of_a_sum), "cpu"), results(scan_of(largest_of_a_sum), "loop"), 1e-10
    )
