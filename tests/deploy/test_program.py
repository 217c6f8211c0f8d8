"""A C++ program without Python runs a package of AOTInductor: the program of docs/deployment.md."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rnnfast
from rnnfast import deploy
from rnnfast._build import host
from tests.build.support import ROOT, run

SOURCE = Path(__file__).with_name("program")
PAGE = (ROOT / "docs/deployment.md").read_text()
SIZES = (7, 3), (2, 2), (31, 5), (7, 3), (64, 16)


@pytest.mark.parametrize(("name", "language"), [("run.cpp", "cpp"), ("CMakeLists.txt", "cmake")])
def test_it_is_the_program_of_the_docs(name: str, language: str) -> None:
    assert f"```{language}\n{(SOURCE / name).read_text()}```" in PAGE


class Tagger(nn.Module):
    """The model of the docs: a bidirectional GRU of two layers, with lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = rnnfast.GRU(8, 16, num_layers=2, bidirectional=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y, final = self.gru(x, lengths=lengths)
        return self.head(y), final


class Built(NamedTuple):
    """The program, and a package with the model that it was made of."""

    program: Path
    package: Path
    model: nn.Module


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if (missing := deploy.why_missing()) is not None:
        pytest.skip(missing)
    if shutil.which("cmake") is None or (compiler := host.find_compiler())[0] is None:
        pytest.skip("no cmake" if shutil.which("cmake") is None else compiler[1])
    folder = tmp_path_factory.mktemp("program")
    torch_folder = Path(torch.__file__).parent
    settings = [f"-DTORCH={torch_folder}", f"-DRNNFAST={deploy.library()}"]
    for command in (
        ["cmake", "-S", str(SOURCE), "-B", "build", "-DCMAKE_BUILD_TYPE=Release", *settings],
        ["cmake", "--build", "build"],
    ):
        done = run(command, folder)
        assert done.returncode == 0, done.stdout
    torch.manual_seed(0)
    model = Tagger().eval()
    T, B = Dim("T", min=2, max=512), Dim("B", min=2, max=64)
    with torch.no_grad():
        example = (torch.randn(5, 3, 8), torch.tensor([5, 2, 4]))
        program = torch.export.export(model, example, dynamic_shapes=({0: T, 1: B}, {0: B}))
    assert "rnnfast.scan_forward" in program.graph_module.code
    package = folder / "tagger.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(package))
    return Built(folder / "build/run", package, model)


def run_program(
    built: Built, inputs: list[tuple[Tensor, ...]], folder: Path
) -> subprocess.CompletedProcess[str]:
    torch.save(inputs, folder / "inputs.pt")
    return run([str(built.program), str(built.package), "inputs.pt", "outputs.pt"], folder)


def test_it_computes_what_the_layer_does(built: Built, tmp_path: Path) -> None:
    inputs = [(torch.randn(T, B, 8), torch.randint(0, T + 1, (B,))) for T, B in SIZES]
    done = run_program(built, inputs, tmp_path)
    assert done.returncode == 0, done.stdout
    found = torch.load(tmp_path / "outputs.pt", weights_only=False)
    with torch.no_grad():
        expected = [list(built.model(*args)) for args in inputs]
    torch.testing.assert_close([list(each) for each in found], expected)


def test_python_is_not_in_the_process(built: Built) -> None:
    if shutil.which("ldd") is None:
        pytest.skip("there is no ldd")
    loaded = run(["ldd", str(built.program)], built.program.parent).stdout
    names = [line.split()[0] for line in loaded.splitlines()]
    assert any("librnnfast.so" in name for name in names)
    assert "not found" not in loaded
    assert [name for name in names if "python" in Path(name).name] == []


def test_wrong_input_is_an_error_and_no_crash(built: Built, tmp_path: Path) -> None:
    done = run_program(built, [(torch.randn(5, 3, 8), torch.tensor([5, 6, 1]))], tmp_path)
    assert done.returncode == 1, done.stdout
    assert "lengths should be in [0, 5], found 6" in done.stdout
