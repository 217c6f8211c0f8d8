"""The kernels for the CPU without `rnnfast._C`, as a wheel has them: one file for every torch and
every Python."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import torch

from rnnfast import _ext

from .build.support import ROOT, python

pytestmark = pytest.mark.skipif(
    _ext.why_no_cpu() is not None, reason=str(_ext.why_no_cpu() or "built")
)

WITHOUT_C = """
import sys
sys.modules["rnnfast._C"] = None  # an import of it fails
import torch, rnnfast
from rnnfast import _ext, clip_grad_norm_, doctor
from rnnfast.backends import registry

torch.manual_seed(0)
assert _ext.load() is None and "rnnfast._C" in _ext.why_missing()
assert registry.BACKENDS["cpu"].unusable() is None
x, lengths = torch.randn(7, 3, 5), torch.tensor([7, 4, 0])
for kind in (rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU, rnnfast.MGU):
    layer = kind(5, 6)
    with rnnfast.use_backend("cpu"):
        y, _ = layer(x, lengths=lengths)
        y.square().sum().backward()
    mine = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    with rnnfast.use_backend("reference"):
        expected, _ = layer(x, lengths=lengths)
        expected.square().sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(mine, [p.grad for p in layer.parameters()])
before = torch.stack([p.grad.norm() for p in layer.parameters()]).norm()
torch.testing.assert_close(clip_grad_norm_(layer.parameters(), 0.1), before)
assert torch.stack([p.grad.norm() for p in layer.parameters()]).norm() < 0.1001
with torch.no_grad(), rnnfast.use_backend("cpu"):
    stream = rnnfast.Stream(layer)
    steps = torch.stack([stream(x[t, 0]) for t in range(7)])
    torch.testing.assert_close(steps, layer(x[:, 0])[0])
print(doctor.report())
"""


def test_layers_clipping_and_streams_need_no_bindings():
    done = python(WITHOUT_C, ROOT)
    assert done.returncode == 0, done.stdout
    rows = dict(words for line in done.stdout.splitlines() if len(words := line.split(None, 1)) > 1)
    assert rows["rnnfast._cpu"] == "loaded"
    assert rows["rnnfast._C"].startswith("not usable: ")
    assert rows["cpu"] == "usable"


def test_it_asks_torch_and_python_for_nothing_that_changes():
    """Symbols of torch's stable ABI and of Python's limited API; no OpenMP library by name."""
    if (nm := shutil.which("nm")) is None or (readelf := shutil.which("readelf")) is None:
        pytest.skip("needs nm and readelf (binutils)")
    file = str(_ext.cpu().__file__)
    assert file.endswith(".abi3.so")
    names = {line.split()[-1].partition("@")[0] for line in output_of(nm, "-D", "-u", file)}
    of_torch = {name for name in names if re.search("torch|c10|_ZN2at", name)}
    assert "torch_tensor_to_pyobject" in of_torch  # weak: where torch has it
    assert {name for name in of_torch if not name.startswith(("aoti_torch_", "torch_"))} == set()
    of_python = {name for name in names if name.startswith(("Py", "_Py"))}
    assert of_python
    assert {name for name in of_python if name[0] == "_"} <= {"_Py_NoneStruct", "_Py_Dealloc"}
    needed = [line for line in output_of(readelf, "-d", file) if "NEEDED" in line]
    assert not [line for line in needed if re.search("python|omp|c10|libtorch_python", line)]
    assert [line for line in needed if "libtorch_cpu.so" in line]


def output_of(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_tensors_that_cant_be_seen_are_refused():
    module = _ext.cpu()
    weight = torch.randn(8, 4)
    product = module.cpu_product
    with pytest.raises(TypeError, match="expected a tensor"):
        product(weight, "b")
    with pytest.raises(TypeError, match="lacks the argument b"):
        product(weight)
    with pytest.raises(TypeError, match="takes 2 arguments by position, got 3"):
        product(weight, weight, None)
    with pytest.raises(TypeError, match="has no argument rows"):
        product(weight, weight, rows=None)
    with pytest.raises(TypeError, match="got one argument twice"):
        product(weight, weight, b=weight)
    with pytest.raises(RuntimeError):  # torch's own
        product(weight, torch.sparse_coo_tensor(size=(4, 4)))
    with pytest.raises(ValueError, match="must be on the CPU, got meta"):
        product(weight, weight.T.to("meta"))


def test_no_reference_is_lost_or_kept():
    """Arguments, results and errors: counts are as before after many calls."""
    module = _ext.cpu()
    left, right = torch.randn(3, 4), torch.randn(4, 2)
    into = torch.zeros(3, 2)
    objects = [left, right, into, None, "cell", torch.float32]

    def calls() -> None:
        module.cpu_product(left, right, row=None)
        module.cpu_product(left, right, into=into)
        module.clip_norm([left, right], 2.0, False, None, False)
        module.clip_value([left], 1e9)
        module.cpu_plan("gru", 1, 3, 3, torch.float32)
        with pytest.raises(ValueError, match="cannot be multiplied"):
            module.cpu_product(left, left)

    calls()
    before = [sys.getrefcount(o) for o in objects]
    for _ in range(100):
        calls()
    after = [sys.getrefcount(o) for o in objects]
    assert max(abs(a - b) for a, b in zip(after, before, strict=True)) < 50
    assert sys.getrefcount(module.cpu_product(left, right)) == 1 + (sys.version_info < (3, 14))
