"""The matrix: BUILT_IN × BACKENDS × dtypes × sizes × options, and how one case is run.

A new cell or backend appears here by itself. A backend that refuses a case skips it with its
reason.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import rnnfast
from rnnfast.backends import registry
from rnnfast.ops import pack
from rnnfast.problem import Options, Scan, problem_of

from .naive import Inputs, batched_scan, naive_scan

# names; tests define cells of their own, which are in rnnfast.CELLS too
BUILT_IN = tuple(spec.name for spec in rnnfast.cells.BUILT_IN)
FEW_STEPS = 64  # of all sequences: above, the oracle takes them at once
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """One problem; tensors follow from it by its seed."""

    cell: str
    T: int = 7
    B: int = 3
    I: int = 4
    H: int = 6
    P: int = 0  # of projected cells; 0: (H + 1) // 2
    kind: str = "dense"
    bias: bool = True
    reverse: bool = False
    lengths: bool = False
    resets: bool = False
    all_states: bool = False
    strided: bool = False
    clip: float = 0.0  # grad_clip_time, as Options has it
    seed: int = 0

    def __str__(self) -> str:
        sizes = f"{self.cell}-T{self.T}B{self.B}I{self.I}H{self.H}"
        flags = [self.kind] if self.kind != "dense" else []
        names = ("reverse", "lengths", "resets", "all_states", "strided")
        flags += [n for n in names if getattr(self, n)]
        flags += [] if self.bias else ["nobias"]
        flags += [f"clip{self.clip}"] if self.clip else []
        return "-".join([sizes, *flags])


SIZES = ((1, 1, 1, 1), (63, 5, 1, 33), (1, 5, 7, 96), (63, 1, 3, 257))

OPTIONS: tuple[dict, ...] = (
    {},
    {"reverse": True},
    {"lengths": True},
    {"lengths": True, "reverse": True},
    {"resets": True},
    {"resets": True, "lengths": True, "reverse": True},
    {"all_states": True, "lengths": True},
    {"bias": False},
    {"strided": True},
    {"kind": "gates"},
    {"kind": "gates", "bias": False, "reverse": True},
    {"kind": "tokens"},
    {"kind": "tokens", "lengths": True, "bias": False},
    {"clip": 0.05},
    {"clip": 0.05, "lengths": True, "resets": True, "reverse": True, "all_states": True},
)


def matrix() -> list[Case]:
    """Every option at small sizes, the odd sizes with and without everything on."""
    cases = []
    for cell in BUILT_IN:
        cases += [Case(cell, **options) for options in OPTIONS]
        for T, B, I, H in SIZES:
            cases.append(Case(cell, T, B, I, H))
            everything = {"lengths": True, "resets": True, "reverse": True, "all_states": True}
            cases.append(Case(cell, T, B, I, H, **everything))
    return cases


# --- tensors -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def tensors(case: Case) -> dict[str, Tensor]:
    """float64 values of everything that enters, by name; never written to."""
    g = torch.Generator().manual_seed(case.seed + 1)
    spec = rnnfast.CELLS[case.cell]
    G, H = spec.gates, case.H
    P = (case.P or (H + 1) // 2) if spec.projected else H

    def uniform(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=g, dtype=torch.float64) * 2 - 1) / max(H, 4) ** 0.5

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    shapes = {"w_ih": (G * H, case.I), "w_hh": (G * H, P), "b_ih": (G * H,), "b_hh": (G * H,)}
    shapes["w_hr"] = (P, H)
    names = spec.weight_names(case.kind, case.bias)
    if spec.own:
        shapes |= {n: spec.weight_shape(n, H) for n in names if n != "w_ih"}
    found = {n: uniform(*shapes[n]) for n in names}
    found["h"] = normal(case.B, P) / 2
    if len(spec.states) == 2:
        found["c"] = normal(case.B, H) / 2
    if case.kind == "tokens":
        found["x"] = torch.randint(case.I, (case.T, case.B), generator=g)
    else:
        found["x"] = normal(case.T, case.B, case.I if case.kind == "dense" else G * H)
    if case.lengths:
        ends = torch.randint(0, case.T + 1, (case.B,), generator=g)
        ends[0] = case.T
        found["lengths"] = ends
    if case.resets:
        found["resets"] = torch.rand(case.T, case.B, generator=g) < 0.2
    found["dy"] = normal(case.T, case.B, P)
    found["dh"], found["dc"] = normal(case.B, P), normal(case.B, H)
    found["dtrace"] = normal(case.T, case.B, H)
    return found


def leaves(
    case: Case, dtype: torch.dtype, device: str = "cpu", nudge: int = 0
) -> dict[str, Tensor]:
    """The tensors of ``case`` in ``dtype``, those of floating point wanting gradients.

    ``nudge`` 1, 2, …: each number is moved at random, another way for each, by no more than half a
    unit in its last place before it is rounded.
    """
    g = torch.Generator().manual_seed(nudge)
    found = {}
    for name, value in tensors(case).items():
        if nudge and value.is_floating_point():
            moved = torch.rand(value.shape, generator=g, dtype=torch.float64) - 0.5
            value = value * (1 + moved * torch.finfo(dtype).eps)
        value = value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
        value = value.to(device)
        if case.strided and name == "x":
            value = _strided(value)
        if value.is_floating_point() and not name.startswith("d"):
            value.requires_grad_()
        found[name] = value
    return found


def _strided(x: Tensor) -> Tensor:
    shape = (x.shape[1], x.shape[0], *[2 * n for n in x.shape[2:]])
    wide = torch.full(shape, torch.nan, device=x.device)
    view = wide.to(x.dtype).transpose(0, 1)[..., ::2]
    view.copy_(x)
    return view.detach()


def scan_of(case: Case, t: dict[str, Tensor], training: bool = True) -> Scan:
    spec = rnnfast.CELLS[case.cell]
    weights = [t[n] for n in spec.weight_names(case.kind, case.bias)]
    options = Options(case.reverse, case.all_states, training, grad_clip_time=case.clip)
    states = [t[n] for n in spec.states]
    ends = (t.get("lengths"), t.get("resets"))
    return Scan(case.cell, case.kind, t["x"], states, weights, *ends, options)


def refusal(case: Case, backend: str, dtype: torch.dtype) -> str | None:
    problem = problem_of(scan_of(case, leaves(case, dtype)))
    return registry.refusal(registry.BACKENDS[backend], problem)


def taking(dtype: torch.dtype) -> list[str]:
    """The backends that take a plain problem of this dtype, on CPU tensors, in this process."""
    return [name for name in registry.BACKENDS if refusal(Case("lstm"), name, dtype) is None]


# --- running -----------------------------------------------------------------------------------


def run(
    case: Case, backend: str, dtype: torch.dtype, route: str = "eager", device: str = "cpu"
) -> dict[str, Tensor]:
    """Outputs, final states and every gradient, by name. ``route``: ``eager`` or ``op``."""
    t = leaves(case, dtype, device)
    scan = scan_of(case, t)
    if route == "op":
        outputs = torch.ops.rnnfast.scan_forward(*pack(scan, backend))[:3]
    else:
        outputs = rnnfast.scan(
            case.cell,
            scan.input,
            scan.states,
            scan.weights,
            lengths=scan.lengths,
            resets=scan.resets,
            projected=case.kind == "gates",
            reverse=case.reverse,
            all_states=case.all_states,
            grad_clip_time=("zero", -case.clip) if case.clip < 0 else case.clip,
            backend=backend,
        )
    y, final, trace = outputs
    named = {"y": y, **dict(zip("hc", final, strict=False))}
    if trace:
        named["trace"] = trace[0]
    return with_gradients(named, t)


@functools.lru_cache(maxsize=256)
def oracle(
    case: Case, dtype: torch.dtype, nudge: int = 0, slopes: bytes | None = None
) -> dict[str, Tensor]:
    """The same by a naive loop; ``nudge`` as in ``leaves``, ``slopes`` as ``slopes_of`` gives."""
    t = leaves(case, dtype, nudge=nudge)
    spec = rnnfast.CELLS[case.cell]
    weights = {n: t[n] for n in spec.weight_names(case.kind, case.bias)}
    lengths = t["lengths"].tolist() if case.lengths else None
    states = [t[n] for n in spec.states]
    at = None
    if slopes is not None:
        at = torch.frombuffer(bytearray(slopes), dtype=torch.bool).view(case.T, case.B, -1)
    loop = naive_scan if case.T * case.B <= FEW_STEPS else batched_scan
    named = loop(
        Inputs(
            case.cell,
            t["x"],
            case.kind,
            states,
            weights,
            lengths,
            t.get("resets"),
            case.reverse,
            case.clip,
            at,
        )
    )
    if not case.all_states:
        named.pop("trace", None)
    return with_gradients(named, t)


def slopes_of(case: Case, y: Tensor) -> bytes | None:
    """Where ``y``, of rnn_relu, took the slope 1 of relu; None for the other cells."""
    return (y > 0).contiguous().numpy().tobytes() if case.cell == "rnn_relu" else None


def with_gradients(outputs: dict[str, Tensor], t: dict[str, Tensor]) -> dict[str, Tensor]:
    """``outputs`` and the gradient of everything that wants one, for fixed random cotangents."""
    wanted = {n: v for n, v in t.items() if v.requires_grad}
    grads = torch.autograd.grad(
        [outputs[n] for n in outputs],
        list(wanted.values()),
        [t["d" + n] for n in outputs],
        allow_unused=True,
    )
    found = {n: v.detach() for n, v in outputs.items()}
    for (name, value), grad in zip(wanted.items(), grads, strict=False):
        found["grad of " + name] = torch.zeros_like(value) if grad is None else grad
    return found


def small(case: Case) -> Case:
    """The case at sizes that gradcheck can afford."""
    return replace(case, T=3, B=2, I=2, H=2)
