"""librnnfast.so with tensors on a GPU: on devices that stand in, in a process without rnnfast. What
is computed is the tests of the executor's (tests/simt/test_program_simt.py)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim

import rnnfast
from rnnfast import _ext, deploy
from tests.build.stand_in import stand_in
from tests.build.support import run

from .gpu_child import SHAPES, STRATEGIES, B, H, I, T
from .test_library import output_of

CUDA = Path(rnnfast.__file__).with_name(_ext.CUDA)
needs_cuda = pytest.mark.skipif(_ext.why_no_cuda() is not None, reason=str(_ext.why_no_cuda()))


@needs_cuda
def test_it_asks_of_torch_for_the_stable_interface_and_one_guard() -> None:
    undefined = output_of("nm", "-D", "--undefined-only", str(CUDA))
    names = [line.split()[-1].partition("@")[0] for line in undefined.splitlines()]
    assert [name for name in names if re.match("_?Py", name)] == []
    of_torch = [name for name in names if re.search("torch|aten|c10|at[0-9]", name)]
    others = [name for name in of_torch if not name.startswith(("aoti_torch_", "torch_"))]
    assert others == ["_ZN2at11NoTF32GuardC1Ev", "_ZN2at11NoTF32GuardD1Ev"]
    dynamic = output_of("readelf", "-d", str(CUDA))
    needed = set(re.findall(r"\(NEEDED\).*\[(.*?)\.so", dynamic))
    assert {"libtorch_cpu", "libtorch_cuda", "libcudart"} <= needed
    assert not any("python" in name or "c10" in name or "gomp" in name for name in needed)


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the child printed."""
    folder = tmp_path_factory.mktemp("on_gpu")
    devices, environment = stand_in(folder)
    if (missing := deploy.why_missing()) is not None:
        pytest.skip(missing)
    sizes = {0: Dim("T", min=2, max=64), 1: Dim("B", min=2, max=64)}
    with torch.no_grad(), rnnfast.use_backend("cpu"):
        layer = rnnfast.LSTM(I, H, bidirectional=True).eval()
        program = torch.export.export(layer, (torch.randn(T, B, I),), dynamic_shapes=(sizes,))
    torch.export.save(program, folder / "program.pt2")
    child = Path(__file__).with_name("gpu_child.py")
    words = [sys.executable, child, devices, deploy.library(), folder / "program.pt2"]
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def ours(noted: dict[str, Any], name: str) -> list[list[str]]:
    assert isinstance(noted[name], dict), noted[name]
    return [one for one in noted[name]["launched"] if "rnnfast" in one[0]]


@pytest.mark.parametrize("cell", SHAPES)
def test_each_cell_is_launched_and_has_its_outputs(noted: dict[str, Any], cell: str) -> None:
    _, states, projected = SHAPES[cell]
    P = 8 if projected else H
    assert ours(noted, cell)
    final = [["cuda:0", B, width] for width in (P, H)[:states]]
    assert noted[cell]["shapes"] == [["cuda:0", T, B, P], final, [], []]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plans_are_heeded(noted: dict[str, Any], strategy: str) -> None:
    names = " ".join(name for name, *_ in ours(noted, f"by {strategy}"))
    kernel = {"": "", "stepwise": "stepwise", "resident": "SoloTeam"}.get(strategy, "team")
    assert kernel in names, names


def test_launches_are_on_the_tensors_device_and_stream(noted: dict[str, Any]) -> None:
    assert {(device, stream) for _, device, stream in ours(noted, "device 1")} == {("1", "-")}
    assert {(device, stream) for _, device, stream in ours(noted, "side stream")} == {("1", "1")}


def test_an_exported_program_that_was_moved_to_a_device(noted: dict[str, Any]) -> None:
    assert len(ours(noted, "a program")) >= 2  # directions
    assert noted["a program"]["shapes"][0] == ["cuda:0", 9, 2, 2 * H]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a weight on the host", "w_hh is on another device than cuda"),
        ("a weight on a device", "w_ih is on another device than the CPU"),
        ("a shape", "gru takes 1 states, got 0"),
        ("a plan", "RNNFAST_PLAN"),
    ],
)
def test_a_wrong_call_is_an_error_in_words(noted: dict[str, Any], name: str, message: str) -> None:
    assert message in noted[name]


ALONE = """
import ctypes, sys, torch
sys.modules["rnnfast"] = None
torch.ops.load_library(sys.argv[1])
op = torch.ops.rnnfast.scan_forward
try:
    op("gru", "dense", torch.ones(1, 1, 1, device="cuda"), [], [], None, None, False, False, False,
       0, 0.0, "auto")
except RuntimeError as error:
    print(error)
"""


def test_without_the_file_beside_it_the_error_names_it(tmp_path: Path) -> None:
    _, environment = stand_in(tmp_path)
    copy = shutil.copy(deploy.library(), tmp_path)
    done = run([sys.executable, "-c", ALONE, str(copy)], tmp_path, **environment)
    assert "need librnnfast_cuda.so beside librnnfast.so: " in done.stdout
    assert "cannot open shared object file" in done.stdout
