"""librnnfast.so: the op without Python."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import rnnfast
from rnnfast import _ext, deploy
from rnnfast.problem import wide
from tests.build.support import ROOT, run
from tests.elsewhere import run_elsewhere
from tests.layers import makers
from tests.test_trace import Call, plain, with_lengths

from .library_child import BAD, GOOD

I, H = 5, 6
SIZES = (4, 3), (9, 2), (2, 7), (5, 48)  # the example's first; of the last each thread has many
MISSING = deploy.why_missing()
needs_library = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


# --- where it is ---------------------------------------------------------------------------------


@needs_library
def test_the_path_is_of_the_file_beside_the_package() -> None:
    assert deploy.library() == Path(rnnfast.__file__).with_name("librnnfast.so")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "librnnfast.so is not built; in rnnfast's source folder"),
        ({"built": True}, "librnnfast.so is not built; in rnnfast's source folder"),
        ({"built": False, "reason": "no C++ compiler"}, "was not built, for: no C"),
    ],
)
def test_without_one_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: Any, message: str
) -> None:
    monkeypatch.setattr(deploy, "_LIBRARY", tmp_path / "librnnfast.so")
    monkeypatch.setattr(_ext, "build_record", lambda: record)
    with pytest.raises(RuntimeError, match=message):
        deploy.library()


# --- what it is linked to ------------------------------------------------------------------------


def output_of(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} (binutils) is not installed")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@needs_library
def test_it_asks_for_nothing_of_python_and_of_torch_for_the_stable_interface_alone() -> None:
    undefined = output_of("nm", "-D", "--undefined-only", str(deploy.library()))
    names = [line.split()[-1].partition("@")[0] for line in undefined.splitlines()]
    assert [name for name in names if re.match("_?Py", name)] == []
    of_torch = [name for name in names if re.search("torch|aten|c10|at[0-9]", name)]
    assert len(of_torch) > 10
    assert [name for name in of_torch if not name.startswith(("aoti_torch_", "torch_"))] == []


@needs_library
def test_it_needs_no_library_but_torchs_and_the_compilers() -> None:
    dynamic = output_of("readelf", "-d", str(deploy.library()))
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert "libtorch_cpu.so" in needed
    others = ("libtorch_cpu", "libstdc++", "libgcc_s", "libm.", "libc.", "ld-linux")
    assert [name for name in needed if not name.startswith(others)] == []


# --- what it computes ----------------------------------------------------------------------------


class Case(NamedTuple):
    make: Callable[..., nn.Module]
    how: Callable[..., Any]
    args: Callable[[int, int], tuple[Tensor, ...]]
    dtype: torch.dtype = torch.float32
    gradients: bool = False  # exported with them
    backend: str = "cpu"


def everything(T: int, B: int) -> tuple[Tensor, ...]:
    return torch.randn(T, B, I), torch.randint(0, T + 1, (B,)), torch.rand(T, B) < 0.3


def tokens(T: int, B: int) -> tuple[Tensor, ...]:
    return torch.randint(I, (T, B)), torch.randint(0, T + 1, (B,))


def dense(T: int, B: int) -> tuple[Tensor, ...]:
    return (torch.randn(T, B, I),)


def all_of_it(layer: nn.Module, x: Tensor, lengths: Tensor, resets: Tensor) -> Any:
    y, final, states = layer(x, lengths=lengths, resets=resets, return_all_states=True)
    return y, final, [state for state in states if state is not None]


def op_of(cell: str, all_states: bool) -> Callable[..., Any]:
    """The op alone, with all that it returns in training."""

    def call(layer: nn.Module, x: Tensor) -> Any:
        weights = list(layer.parameters())
        widths = rnnfast.CELLS[cell].state_widths(weights[1].shape[1], H)
        states = [x.new_zeros(x.shape[1], width) for width in widths]
        options = (None, None, True, all_states, True, 0, 0.0, "cpu")
        return torch.ops.rnnfast.scan_forward(cell, "dense", x, states, weights, *options)

    return call


BOTH = {"num_layers": 2, "bidirectional": True}
CASES: dict[str, Case] = {}
for _name, _make in makers(I, H, without=()).items():
    _both = partial(_make, **BOTH)
    CASES[_name] = Case(_both, all_of_it, everything)
    CASES[f"{_name}_16_bit"] = Case(_both, all_of_it, everything, torch.bfloat16)
    CASES[f"{_name}_tokens"] = Case(partial(_both, bias=False), with_lengths, tokens, torch.float64)
    CASES[f"{_name}_saved"] = Case(_make, op_of(_name, False), dense)
    CASES[f"{_name}_saved_16_bit"] = Case(_make, op_of(_name, True), dense, torch.float16)
CASES["gradients"] = Case(partial(makers(I, H)["gru"], **BOTH), plain, dense, gradients=True)
CASES["of_torch"] = Case(makers(I, H)["lstm"], plain, dense, gradients=True, backend="torch")


def as_dtype(dtype: torch.dtype, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in args)


def exported(model: nn.Module, args: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    T, B = Dim("T", min=2, max=64), Dim("B", min=2, max=64)
    sizes = tuple({0: B} if arg.dim() == 1 else {0: T, 1: B} for arg in args)
    return torch.export.export(model, args, dynamic_shapes=(sizes,))


class Programs(NamedTuple):
    """What was saved, what it is given, and what the layer returns."""

    folder: Path
    inputs: dict[str, list[tuple[Tensor, ...]]]
    expected: dict[str, list[list[Tensor]]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    made = Programs(tmp_path_factory.mktemp("programs"), {}, {})
    torch.manual_seed(0)
    for name, case in CASES.items():
        model = Call(case.make(dtype=case.dtype), case.how).eval()
        made.inputs[name] = [as_dtype(case.dtype, case.args(*size)) for size in SIZES]
        with torch.set_grad_enabled(case.gradients), rnnfast.use_backend(case.backend):
            torch.export.save(exported(model, made.inputs[name][0]), made.folder / f"{name}.pt2")
            results = [tree_leaves(model(*args)) for args in made.inputs[name]]
        made.expected[name] = [[t.detach() for t in result] for result in results]
    return made


@pytest.fixture(scope="module")
def found(programs: Programs) -> dict[str, Any]:
    return run_elsewhere("export", programs.folder, programs.inputs, deploy.library())


@pytest.fixture(scope="module")
def found_by_avx2(programs: Programs) -> dict[str, Any]:
    """On an instruction set that may be another than the expected results are from."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("this processor has no AVX2")
    isa = {"RNNFAST_CPU_CAPABILITY": "avx2"}
    return run_elsewhere("export", programs.folder, programs.inputs, deploy.library(), **isa)


def results(found: dict[str, Any], name: str) -> Any:
    assert not isinstance(found[name], str), found[name]
    return found[name]


@needs_library
@pytest.mark.parametrize("name", CASES)
def test_a_saved_program_runs_without_rnnfast(
    name: str, programs: Programs, found: dict[str, Any]
) -> None:
    same = CASES[name].backend == "cpu"  # then the bits are the same, too
    bounds = {"rtol": 0, "atol": 0} if same else {}
    expected = programs.expected[name]
    torch.testing.assert_close(results(found, name), expected, equal_nan=False, **bounds)


@needs_library
@pytest.mark.parametrize("name", CASES)
def test_and_on_another_instruction_set(
    name: str, programs: Programs, found_by_avx2: dict[str, Any]
) -> None:
    """Sums in another order differ in their last bits. A number of 16 bits may then be rounded to
    the other neighbour, as may a gate that is saved in fixed point. Dot products of bfloat16 round
    what they multiply, too: beside a set without them that is a few roundings more."""
    found, expected = results(found_by_avx2, name), programs.expected[name]
    dtype = CASES[name].dtype
    if dtype == wide(dtype):
        return torch.testing.assert_close(found, expected)
    roundings = 4 if dtype == torch.bfloat16 and _ext.cpu().cpu_has_dots() else 1
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert a.dtype == b.dtype
        largest = float(b.double().abs().max()) if b.numel() else 0.0
        apart = 1 if b.dtype == torch.int16 else roundings * torch.finfo(dtype).eps * largest
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=apart)


# --- wrong input ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = tmp_path_factory.mktemp("said") / "found"
    child = Path(__file__).with_name("library_child.py")
    done = run([sys.executable, str(child), str(deploy.library()), str(found)], found.parent)
    assert done.returncode == 0, done.stdout
    return torch.load(found)


@needs_library
@pytest.mark.parametrize("name", BAD)
def test_wrong_input_is_an_error_that_says_what_is_wrong(name: str, said: dict[str, str]) -> None:
    assert re.search(BAD[name][1], said[name], re.DOTALL), said[name]


@needs_library
@pytest.mark.parametrize("name", GOOD)
def test_these_inputs_are_right(name: str, said: dict[str, str]) -> None:
    assert said[name] == ""


# --- beside Python's -----------------------------------------------------------------------------

IS_PYTHONS = """
layer, x = rnnfast.GRU(3, 4), torch.randn(5, 2, 3)
try:  # which the kernel in Python alone has heard of
    torch.ops.rnnfast.scan_forward("gru", "dense", x, [torch.zeros(2, 4)], list(layer.parameters()),
        None, None, False, False, False, 0, 0.0, "nonsense")
except ValueError as error:
    print("Python:", error)
program = torch.export.export(layer, (x,))  # the fake kernel is Python's
torch.testing.assert_close(program.module()(x), layer(x))
torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0].sum().backward()
"""
LOADED_BEFORE = """
import torch
torch.ops.load_library(LIBRARY)
import rnnfast
"""
LOADED_AFTER = """
import rnnfast, shutil, tempfile, torch
with tempfile.TemporaryDirectory() as folder:
    for library in (LIBRARY, shutil.copy(LIBRARY, folder)):
        torch.ops.load_library(library)
"""
OF_ANOTHER_VERSION = """
import torch
other = torch.library.Library("rnnfast", "DEF")
other.define("scan_forward(Tensor input) -> Tensor")
import rnnfast
"""


def in_python(code: str) -> subprocess.CompletedProcess[str]:
    library = "" if MISSING is not None else str(deploy.library())
    return run([sys.executable, "-W", "error", "-c", f"LIBRARY = {library!r}\n{code}"], ROOT)


@needs_library
@pytest.mark.parametrize("load", [LOADED_BEFORE, LOADED_AFTER], ids=["before", "after"])
def test_where_rnnfast_is_imported_its_own_kernels_serve(load: str) -> None:
    done = in_python(load + IS_PYTHONS)
    assert done.returncode == 0, done.stdout
    assert "Python: no backend is called 'nonsense'" in done.stdout


def test_an_op_of_another_version_is_refused() -> None:
    done = in_python(OF_ANOTHER_VERSION)
    assert done.returncode != 0
    assert "ImportError: this process loaded the librnnfast.so of another version" in done.stdout
