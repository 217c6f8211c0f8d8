"""librnnfast.so: rnnfast::scan_backward without Python, which programs with gradients call."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export.experimental import _export_forward_backward

import rnnfast
from rnnfast import deploy
from rnnfast.ops import pack
from rnnfast.problem import Scan
from rnnfast.products import multiply
from tests.cases import BUILT_IN, Case, leaves, scan_of

from .test_library import needs_library

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"lengths": True, "resets": True, "reverse": True, "all_states": True},
    "gates": {"kind": "gates", "lengths": True},
    "tokens": {"kind": "tokens", "lengths": True},
    "without bias": {"bias": False, "strided": True, "resets": True},
    "limited": {"clip": 0.05},
    "one": {"T": 1, "B": 1, "I": 1, "H": 1},
    "no sequences": {"B": 0},
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CASES = {f"{cell} {name}": Case(cell, **OPTIONS[name]) for cell in BUILT_IN for name in OPTIONS}
ALL, CHILD = (
    [True, True, True],
    """
import sys, torch
sys.modules["rnnfast"] = None  # as if it were not installed: an import of it raises
torch.ops.load_library(sys.argv[1])
found = {}
for name, args in torch.load(sys.argv[2] + "/calls").items():
    try:
        found[name] = torch.ops.rnnfast.scan_backward(*args)
    except RuntimeError as error:
        found[name] = str(error)
program, x = torch.export.load(sys.argv[2] + "/program.pt2"), torch.load(sys.argv[2] + "/x")
inputs = [program.state_dict[s.target] if s.target else x
          for s in program.graph_signature.input_specs]
with torch.no_grad():
    found["program"] = torch.fx.Interpreter(program.graph_module).run(*inputs)
torch.save(found, sys.argv[2] + "/found")
""",
)


def call(scan: Scan, backend: str = "cpu", needs: list[bool] = ALL) -> tuple[Any, ...]:
    """The arguments of scan_backward, with random gradients of all outputs."""
    scan = scan._replace(options=scan.options._replace(training=True))
    args = pack(scan, backend)
    with torch.no_grad():
        y, final, trace, saved = torch.ops.rnnfast.scan_forward(*args)
    dy, *rest = (torch.randn_like(t) for t in (y, *final, *trace))
    dfinal, dtrace = rest[: len(final)], rest[len(final) :]
    needs = [needs[0] and scan.kind != "tokens", *needs[1:]]
    return (*args, dy, dfinal, dtrace, y, trace, saved, needs, 0)


def detached(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [detached(one) for one in value]
    return value.detach() if isinstance(value, Tensor) else value


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = rnnfast.GRU(3, 4, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0].square().sum()


def calls() -> dict[str, tuple[Any, ...]]:
    made = {}
    for name, case in CASES.items():
        for dtype in DTYPES:
            made[f"{name} {dtype}"] = call(scan_of(case, leaves(case, dtype, "cpu")))
    plain = scan_of(Case("lstm"), leaves(Case("lstm"), torch.float32, "cpu"))
    made["reference"] = call(plain, "reference")  # which saves nothing
    for needs in ([True, False, False], [False, True, False], [False, False, True]):
        made[f"needs {needs}"] = call(plain, needs=needs)
    right = list(made["needs [True, False, False]"])
    made["bad groups"] = (*right[:-1], 2)
    made["bad saved"] = (*right[:-3], [], *right[-2:])
    made["bad dy"] = (*right[:13], torch.zeros(2), *right[14:])
    return made


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """By name what the op returned there, or the error's text, and what it returns here."""
    folder: Path = tmp_path_factory.mktemp("backward")
    torch.manual_seed(0)
    given = {name: detached(args) for name, args in calls().items()}
    torch.save(given, folder / "calls")
    x, model = torch.randn(5, 2, 3), Model()
    with rnnfast.use_backend("cpu"):
        joint = _export_forward_backward(torch.export.export(model, (x,), strict=False))
    assert "scan_backward" in joint.graph_module.code
    torch.export.save(joint, folder / "program.pt2")
    torch.save(x, folder / "x")
    words = [sys.executable, "-c", CHILD, str(deploy.library()), str(folder)]
    subprocess.run(words, check=True, cwd=folder)
    there = torch.load(folder / "found")
    with torch.no_grad():
        right = {n: a for n, a in given.items() if not n.startswith("bad")}
        here = {name: torch.ops.rnnfast.scan_backward(*args) for name, args in right.items()}
    loss = model(x)
    here["program"] = (loss.detach(), *torch.autograd.grad(loss, list(model.parameters())))
    return {name: (there[name], here.get(name)) for name in there}


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_backend(
    found: dict[str, Any], name: str, dtype: torch.dtype
) -> None:
    there, here = found[f"{name} {dtype}"]
    assert not isinstance(there, str), there
    same = multiply.is_faster()  # else products of the backend are torch's
    bounds = {"rtol": 0, "atol": 0} if same else {}
    torch.testing.assert_close(list(there), list(here), **bounds)


@needs_library
@pytest.mark.parametrize(
    "name", ["reference", *(f"needs {[i == k for i in range(3)]}" for k in range(3)), "program"]
)
def test_of_a_backend_that_saves_nothing_of_some_and_of_a_joint_program(
    found: dict[str, Any], name: str
) -> None:
    there, here = found[name]
    assert not isinstance(there, str), there
    torch.testing.assert_close(list(there), list(here))


@needs_library
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad groups", "gradients of parts of the batch are not served"),
        ("bad saved", "expected 2 saved tensors, got 0"),
        ("bad dy", r"dy should be \[7, 3, 6\], got \[2\]"),
    ],
)
def test_a_wrong_call_is_an_error(found: dict[str, Any], name: str, message: str) -> None:
    assert re.search(message, found[name][0])
