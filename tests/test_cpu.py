"""The backend ``cpu``: threads, instruction sets, what it saves, extreme values, its two routes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast import _ext
from rnnfast.backends import cpu as cpu_backend
from rnnfast.backends import registry
from rnnfast.problem import Cotangents, Needs, Saved, Scan
from rnnfast.products import multiply
from rnnfast.recurrent import RecurrentLayer

from .cases import BUILT_IN, Case, leaves, run, scan_of, small
from .pipeline_cases import assert_same

pytestmark = pytest.mark.skipif(
    _ext.why_no_cpu() is not None, reason=str(_ext.why_no_cpu() or "built")
)
T, B, I, H = 20, 8, 16, 32
ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = {"lengths": True, "resets": True, "reverse": True, "all_states": True}


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    with rnnfast.use_backend("cpu"):
        yield


# --- threads -----------------------------------------------------------------------------------


def on_threads(n: int, compute: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        return compute()
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one processor, which a team does not share"
)
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize(
    ("batch", "hidden", "strategy"), [(8, 96, "resident"), (1, 384, "stepwise")]
)
@pytest.mark.parametrize("cell", BUILT_IN)
def test_results_do_not_depend_on_the_number_of_threads(
    cell: str, batch: int, hidden: int, strategy: str, options: dict
) -> None:
    # gates: the input's product may be torch's, whose bits depend on threads on some processors
    case = Case(cell, T=6, B=batch, I=5, H=hidden, kind="gates", **options)
    width = (hidden + 1) // 2 if cell == "lstm_proj" else hidden

    def plan() -> str:
        return _ext.cpu().cpu_plan(cell, batch, hidden, width, torch.float32)

    assert "1 thread," in on_threads(1, plan)
    if not cell.startswith("rnn"):  # whose weights may be too few for a second thread
        assert on_threads(2, plan).startswith(f"{strategy}: 2 threads")
    found = [on_threads(n, lambda: run(case, "cpu", torch.float32)) for n in (1, 2)]
    products = {n: [f.pop(n) for f in found] for n in list(found[0]) if n.startswith("grad of w")}
    assert_same(found[1], found[0])
    for one, two in products.values():  # these may be torch's, too
        torch.testing.assert_close(one, two)


# --- instruction sets --------------------------------------------------------------------------

PROBE = """
import sys, torch
from rnnfast import _ext
from tests.cases import Case, run

found = {cell: run(Case(cell, H=37, lengths=True), "cpu", torch.float32) for cell in sys.argv[2:]}
torch.save({"isa": _ext.cpu().cpu_isa(), "found": found}, sys.argv[1])
"""


def probe(isa: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RNNFAST_CPU_CAPABILITY": isa}
    command = [sys.executable, "-c", PROBE, str(path), *BUILT_IN]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_another_instruction_set_gives_close_results(isa: str, tmp_path: Path) -> None:
    if isa == "avx2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    done = probe(isa, tmp_path / "found.pt")
    assert done.returncode == 0, done.stderr
    other = torch.load(tmp_path / "found.pt")
    assert other["isa"] == isa
    for cell in BUILT_IN:
        here = run(Case(cell, H=37, lengths=True), "cpu", torch.float32)
        torch.testing.assert_close(other["found"][cell], here, rtol=1e-4, atol=1e-5)


def test_an_unknown_instruction_set_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    done = probe("nonsense", tmp_path / "found.pt")
    known = "amx, avx512_bf16, avx512, avx2, " if platform.machine() in ("x86_64", "AMD64") else ""
    assert done.returncode != 0
    message = f"RuntimeError: RNNFAST_CPU_CAPABILITY=nonsense is none of: {known}baseline"
    assert done.stderr.strip().splitlines()[-1] == message


def test_amx_is_an_error_where_the_processor_lacks_it(tmp_path: Path) -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("AMX is no instruction set of this architecture")
    if _ext.cpu().cpu_has_tiles() or _ext.cpu().cpu_why_no_tiles():
        pytest.skip("this processor has AMX")
    done = probe("amx", tmp_path / "found.pt")
    message = "RuntimeError: RNNFAST_CPU_CAPABILITY=amx: this processor has no amx"
    assert done.stderr.strip().splitlines()[-1] == message


# --- what is saved -----------------------------------------------------------------------------

PAIRS = {
    "lstm": (rnnfast.LSTM, nn.LSTM),
    "gru": (rnnfast.GRU, nn.GRU),
    "rnn_tanh": (rnnfast.RNN, nn.RNN),
}


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes of the memory that autograd keeps for the layer's backward, its parameters apart."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = layer(x)
    del alive
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    return sum(t.untyped_storage().nbytes() for where, t in kept.items() if where not in own)


MORE = {"lstm_proj": {"proj_size": 16}, "rnn_relu": {"nonlinearity": "relu"}}
# values of T x B x H beside the output: gates (an RNN's is its output), the LSTM's c, one more
SAVED = {"rnn_tanh": 0, "rnn_relu": 0, "lstm": 5, "lstm_proj": 6, "gru": 4}


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("cell", SAVED)
def test_no_more_is_saved_than_backward_needs(cell: str, dtype: torch.dtype) -> None:
    """And than torch.nn saves, in every dtype."""
    ours, torchs = PAIRS[{"lstm_proj": "lstm", "rnn_relu": "rnn_tanh"}.get(cell, cell)]
    more = MORE.get(cell, {})
    x = torch.randn(T, B, I).to(dtype)
    found = saved_bytes(ours(I, H, **more).to(dtype), x)
    P = more.get("proj_size", H)
    initial = B * (P + (H if cell.startswith("lstm") else 0))
    values = SAVED[cell] * T * B * H + T * B * (I + P) + initial
    assert found == dtype.itemsize * values
    assert found <= saved_bytes(torchs(I, H, **more).to(dtype), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", [cell for cell in SAVED if cell != "rnn_relu"])  # relu's stops it
def test_a_nan_reaches_the_gradients_of_16_bit_storage(cell: str, dtype: torch.dtype) -> None:
    """Gates are saved in fixed point, which has a code of its own for it."""
    ours, _ = PAIRS[{"lstm_proj": "lstm", "rnn_relu": "rnn_tanh"}.get(cell, cell)]
    layer = ours(I, H, **MORE.get(cell, {})).to(dtype)
    x = torch.randn(T, B, I).to(dtype)
    x[3, 1, 2] = torch.nan
    x.requires_grad_()
    layer(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].isfinite().all()
    assert x.grad[:4, 1].isnan().all()


@pytest.mark.parametrize("cell", PAIRS)
def test_inference_saves_nothing(cell: str) -> None:
    layer = PAIRS[cell][0](I, H)
    x = torch.randn(T, B, I)
    with torch.no_grad():
        assert saved_bytes(layer, x) == 0
    assert saved_bytes(layer, x) > 0


@pytest.mark.parametrize("cell", BUILT_IN)
def test_backward_does_not_overwrite_what_forward_saved(cell: str) -> None:
    t = leaves(Case(cell), torch.float32)
    spec = rnnfast.CELLS[cell]
    weights = [t[n] for n in spec.weight_names("dense", True)]
    y = rnnfast.scan(cell, t["x"], [t[n] for n in spec.states], weights).y
    first, second = (torch.autograd.grad(y, weights, t["dy"], retain_graph=True) for _ in "12")
    assert_same(dict(enumerate(second)), dict(enumerate(first)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_an_inf_in_a_state_that_nothing_begins_with_stays_there(cell: str, reverse: bool) -> None:
    """Of a sequence without a step, and of one whose first step is a reset: 0 · inf is a NaN."""
    spec = rnnfast.CELLS[cell]
    steps, batch, hidden, width = 4, 3, 3, 2 if spec.projected else 3
    shapes = {"w_ih": (spec.gates * hidden, 2), "w_hh": (spec.gates * hidden, width)}
    shapes |= {"b_ih": (spec.gates * hidden,), "b_hh": (spec.gates * hidden,)}
    shapes["w_hr"] = (width, hidden)
    names = spec.weight_names("dense", True)
    weights = [torch.randn(shapes[n], requires_grad=True) for n in names]
    states = [torch.zeros(batch, w) for w in (width, hidden)][: len(spec.states)]
    states[0][:2] = torch.inf
    lengths, resets = torch.tensor([0, 3, 4]), torch.zeros(steps, batch, dtype=torch.bool)
    resets[2 if reverse else 0, 1] = True
    options = {"lengths": lengths, "resets": resets, "reverse": reverse}
    y, _, _ = rnnfast.scan(cell, torch.randn(steps, batch, 2), states, weights, **options)
    for grad in torch.autograd.grad(y.sum(), weights):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_gates_that_come_in_are_not_overwritten(cell: str, training: bool) -> None:
    t = leaves(Case(cell, kind="gates"), torch.float32)
    spec = rnnfast.CELLS[cell]
    weights = [t[n] for n in spec.weight_names("gates", True)]
    gates = t["x"].detach().clone()
    before = gates.clone()
    with torch.set_grad_enabled(training):
        y = rnnfast.scan(cell, gates, [t[n] for n in spec.states], weights, projected=True).y
    assert torch.equal(gates, before)
    assert y.isfinite().all()


# --- extreme values ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e4, -1e4, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("cell", PAIRS)
def test_extreme_inputs_pass_as_in_torch(cell: str, value: float) -> None:
    ours, torchs = (kind(3, 5) for kind in PAIRS[cell])
    ours.load_state_dict(torchs.state_dict())
    results = []
    for layer in (ours, torchs):
        x = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
        x[1, 0] = 0
        x[1, 0, 0] = value  # one sequence of three, from its second step on
        x.requires_grad_()
        y, final = layer(x)
        y[:, 1:].square().sum().backward()
        results.append([y.detach(), *(final if isinstance(final, tuple) else [final]), x.grad])
    torch.testing.assert_close(*results, equal_nan=True)
    y = results[0][0]
    assert y[:, 1:].isfinite().all()
    assert y[:, 0].isnan().any() == (value != value)


# --- routes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_eager_code_and_the_op_give_equal_results(
    cell: str, options: dict, dtype: torch.dtype
) -> None:
    case = Case(cell, **options)
    assert_same(run(case, "cpu", dtype, "op"), run(case, "cpu", dtype, "eager"))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_compiled_whole_and_differentiated(name: str) -> None:
    torch._dynamo.reset()
    layer = PAIRS[name][0](I, H, num_layers=2, bidirectional=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 3, I, requires_grad=True)
    wanted = [x, *layer.parameters()]
    results = []
    for call in (compiled, layer):
        y = call(x)[0]
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), wanted)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("route", ["eager", "op"])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_second_derivatives_against_finite_differences(cell: str, route: str) -> None:
    case = small(Case(cell))
    t = leaves(case, torch.float64)
    names = [n for n, v in t.items() if v.requires_grad]
    spec = rnnfast.CELLS[cell]

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        t.update(zip(names, values, strict=True))
        weights = [t[n] for n in spec.weight_names("dense", True)]
        states = [t[n] for n in spec.states]
        if route == "eager":
            y, final, _ = rnnfast.scan(cell, t["x"], states, weights)
        else:
            options = (False, False, True, 0, 0.0, "cpu")
            y, final, _, _ = torch.ops.rnnfast.scan_forward(
                cell, "dense", t["x"], states, weights, None, None, *options
            )
        return (y, *final)

    assert torch.autograd.gradgradcheck(outputs, [t[n] for n in names], fast_mode=True)


# --- the input's product, made by the scan --------------------------------------------------------

ARRANGED = {
    "steps first": lambda T, B, I: torch.randn(T, B, I),
    "batch first": lambda T, B, I: torch.randn(B, T, I).transpose(0, 1),
    "one for all": lambda T, B, I: torch.randn(T, 1, I).expand(T, B, I),
    "every other": lambda T, B, I: torch.randn(T, B, 2 * I)[..., ::2],
    "negative": lambda T, B, I: torch._neg_view(torch.randn(T, B, I)),
}


@pytest.mark.parametrize("arranged", ARRANGED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda: rnnfast.RNN(7, 9),
        lambda: rnnfast.LSTM(7, 9, bidirectional=True),
        lambda: rnnfast.LSTM(7, 9, proj_size=4, bias=False),
        lambda: rnnfast.GRU(7, 9),
        lambda: rnnfast.GRU(7, 9, reset_after=False),
    ],
    ids=["rnn", "lstm", "lstm_proj", "gru", "gru_reset_before"],
)
def test_a_scan_that_multiplies_its_input_gives_the_bits_of_one_that_is_given_it(
    make: Callable[[], RecurrentLayer],
    dtype: torch.dtype,
    arranged: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    layer, T, B = make().to(dtype), 5, 20
    x = ARRANGED[arranged](T, B, 7).to(dtype)
    taken: list[bool] = []
    asked = cpu_backend.multiplied_by_kernel

    def noted(scan: Scan) -> bool:
        taken.append(asked(scan))
        return taken[-1]

    def results(training: bool) -> list[Tensor]:
        with torch.set_grad_enabled(training):
            y, final = layer(x, lengths=torch.arange(B) % (T + 1))
        found = [y, *([final] if isinstance(final, Tensor) else final)]
        if training:
            loss = torch.stack([f.double().square().sum() for f in found]).sum()
            found += torch.autograd.grad(loss, list(layer.parameters()))
        return found

    for training in (False, True):
        monkeypatch.setattr(cpu_backend, "multiplied_by_kernel", noted)
        made = on_threads(1, lambda training=training: results(training))
        monkeypatch.setattr(cpu_backend, "multiplied_by_kernel", lambda scan: False)
        given = on_threads(1, lambda training=training: results(training))
        for a, b in zip(made, given, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert taken
    assert all(taken) == (multiply._loaded() is not None)


@pytest.mark.parametrize("name", ["rnn_tanh", "lstm", "gru", "lstm_proj"])
def test_negated_views_are_read_as_what_they_stand_for(name: str) -> None:
    case = Case(name, T=3, B=2)
    scan = scan_of(case, leaves(case, torch.float32))
    given = scan._replace(
        states=[torch._neg_view(-s.detach()) for s in scan.states],
        weights=[torch._neg_view(-w.detach()) for w in scan.weights],
    )
    plain = scan._replace(
        states=[s.detach() for s in scan.states], weights=[w.detach() for w in scan.weights]
    )
    for a, b in zip(outputs_of(given), outputs_of(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def outputs_of(scan: Scan) -> list[Tensor]:
    """Of forward and backward of the backend."""
    backend = registry.BACKENDS["cpu"]
    own = scan._replace(options=scan.options._replace(training=True))
    (y, final, _), saved = backend.forward(own)
    cotangents = Cotangents(torch.ones_like(y), [torch.ones_like(s) for s in final], [])
    found = backend.backward(own, Saved(y, [], saved), cotangents, Needs(True, True, True))
    assert found.dinput is not None
    assert found.dstates is not None
    assert found.dweights is not None
    return [y, *final, found.dinput, *found.dstates, *found.dweights]


def test_jobs_are_what_was_made_for_them() -> None:
    h = torch.zeros(1, 2)
    with pytest.raises(TypeError, match="jobs must be"):
        cpu_backend.module().cpu_forward(
            cell="rnn_tanh",
            gates=torch.zeros(1, 1, 2),
            x=None,
            w_ih=None,
            b_ih=None,
            fixed=False,
            w_hh=torch.zeros(2, 2),
            b_hh=None,
            w_hr=None,
            h0=h,
            c0=None,
            lengths=None,
            resets=None,
            reverse=False,
            training=False,
            all_c=False,
            jobs=object(),
        )
