"""What a check does before it measures: it finds or makes a build, or stops and says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import machine
from benchmarks.gpu_check import command, probe, rates, ready
from benchmarks.gpu_check.children import Command, Finished
from benchmarks.gpu_check.ready import NotReady
from benchmarks.gpu_check.stages import Context, Deadline
from rnnfast import _ext
from rnnfast._build import nvcc, record
from rnnfast.backends import registry

from ..build.support import ROOT, clean_env, tiny_project

FIRST = ROOT / "benchmarks" / "gpu_check" / "first.py"
GPU = {"name": "X100", "capability": "9.0"}


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        (["9.0"], (9, 0), True),
        (["8.0"], (8, 6), True),
        (["8.6"], (8, 0), False),
        (["8.0"], (9, 0), False),
        (["8.0", "9.0+PTX"], (12, 0), True),
        (["9.0a"], (9, 0), True),
        (["10.0a"], (10, 3), False),
        (["9.0a+PTX"], (10, 0), False),
        (["12.0+PTX"], (9, 0), False),
        ([], (9, 0), False),
    ],
)
def test_which_code_runs_where(
    archs: list[str], capability: tuple[int, int], expected: bool
) -> None:
    assert probe.serves(archs, capability) is expected


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A device of 9.0 and a build that serves it; the record may be changed."""
    built = {"archs": ["9.0"], "sources": record.digest(ROOT / "csrc")}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_ext, "why_no_cuda", lambda: built.get("missing"))
    monkeypatch.setattr(_ext, "build_record", lambda: built)
    monkeypatch.setattr(
        type(registry.BACKENDS["cuda"]), "unusable", lambda _: built.get("unusable")
    )
    return built


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"missing": "the extension is not built"}, "the extension is not built"),
        ({"sources": "0"}, "it was built from other sources than csrc has now"),
        ({"archs": ["8.0"]}, "it has kernels for 8.0; the device is of 9.0"),
        ({"archs": []}, "it has kernels for no GPU; the device is of 9.0"),
        ({"unusable": "rnnfast was built without CUDA"}, "rnnfast was built without CUDA"),
    ],
)
def test_why_a_build_can_t_be_used(
    device: dict[str, Any], change: dict[str, Any], why: str | None
) -> None:
    device.update(change)
    assert probe.look_at_package("cuda") == (None, why)


def test_another_checkout_s_package_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", Path("/elsewhere"))
    assert probe.look_at_package("cpu") == (str(ROOT / "rnnfast"), None)


# ---- from what is found to what is done


class Machine:
    """What a probe finds, one after the other, and what was run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *found: dict[str, Any]) -> None:
        self.found = list(found)
        self.ran: list[Command] = []
        self.codes = {"setup.py": 0}
        monkeypatch.setattr(ready, "_probe", lambda *_: {"gpu": GPU} | self.found.pop(0))
        monkeypatch.setattr(ready, "run_all", self.run_all)
        monkeypatch.setattr(rates, "is_built", lambda: True)

    def run_all(self, commands: list[Command], _: float, at_once: int) -> list[Finished]:
        self.ran += commands
        assert at_once == len(commands) or len(commands) == 1
        return [
            Finished(self.codes["setup.py"] if "setup.py" in c.words else 0, "nvcc fatal: no")
            for c in commands
        ]

    def make(self, folder: Path, prebuilt: bool = False) -> ready.Ready:
        context = Context(folder, dry_run=False, prebuilt=prebuilt, cores=16)
        return ready.make(context, Deadline(540))


def test_a_carried_build_that_serves_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Machine(monkeypatch, {"unusable": None})
    made = there.make(tmp_path)
    assert there.ran == []
    assert (made.compiled, made.build[0].outcome.line) == (False, "the extension was there")


def test_else_one_is_compiled_for_the_device_with_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Machine(monkeypatch, {"unusable": "it is old"}, {"unusable": None})
    made = there.make(tmp_path)
    assert made.compiled
    assert made.build[0].outcome.line == "compiled, since it is old"
    program, extension = there.ran
    assert program.words[-2:] == ("--arch", "9.0")
    assert extension.words[1:] == ("setup.py", "-q", "build_ext", "--inplace")
    wanted = {"RNNFAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0", "MAX_JOBS": "16"}
    assert wanted.items() <= extension.environment.items()


def test_only_the_program_of_the_rates_is_compiled_where_that_alone_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Machine(monkeypatch, {"unusable": None})
    monkeypatch.setattr(rates, "is_built", lambda: False)
    made = there.make(tmp_path)
    assert [one.words[-2:] for one in there.ran] == [("--arch", "9.0")]
    assert made.build[0].outcome.line == "the extension was there; no program of the rates"


def test_it_stops_where_there_is_no_build_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {"unusable": "it is old"}
    with pytest.raises(NotReady, match="the extension can't be used: it is old"):
        Machine(monkeypatch, bad).make(tmp_path, prebuilt=True)
    failing = Machine(monkeypatch, bad)
    failing.codes["setup.py"] = 1
    with pytest.raises(NotReady, match=r"was not built: nvcc fatal: no \(exit 1\)"):
        failing.make(tmp_path)
    with pytest.raises(NotReady, match="the new extension can't be used either: it is old"):
        Machine(monkeypatch, bad, bad).make(tmp_path)


@pytest.mark.parametrize(
    ("code", "written", "why"),
    [
        (-11, None, "can't look at the device: "),
        (None, None, "can't look at the device: its time was up"),
        (1, '{"no_device": "no driver", "foreign": null}', "sees no GPU .*: no driver"),
        (0, '{"foreign": "/site/rnnfast"}', "not this checkout's: /site/rnnfast"),
    ],
)
def test_it_stops_where_the_probe_does(
    code: int | None, written: str | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: Command, _: float) -> Finished:
        if written is not None:
            Path(command.words[3]).write_text(written)
        return Finished(code, "Segmentation fault")

    monkeypatch.setattr(ready, "run", run)
    context = Context(tmp_path, dry_run=False, prebuilt=False)
    with pytest.raises(NotReady, match=why):
        ready.make(context, Deadline(540))


def test_an_extension_whose_import_ends_the_process_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe writes what it knows of the device before it touches the package."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "facts", lambda _: {"gpu": GPU})
    monkeypatch.setattr(machine, "slug", lambda *_: "x100")

    def crashes(*_: object) -> Any:
        raise SystemExit

    monkeypatch.setattr(probe, "look_at_package", crashes)
    with pytest.raises(SystemExit):
        probe.main([str(tmp_path / "probe.json")])
    found = rates.json.loads((tmp_path / "probe.json").read_text())
    assert (found["unusable"], found["gpu"]) == ("importing it ended the process", GPU)


def test_the_build_is_kept_for_the_next_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rnnfast").mkdir()
    (tmp_path / "rnnfast/_build_info.json").write_text("{}")
    for name in ("rates", "rates.stamp"):
        (tmp_path / name).write_text("x" * 1000)
    monkeypatch.setattr(ready, "ROOT", tmp_path)
    monkeypatch.setattr(rates, "PROGRAM", tmp_path / "rates")
    monkeypatch.setattr(rates, "STAMP", tmp_path / "rates.stamp")
    ready.keep_build(tmp_path)
    names = ["rnnfast/_build_info.json", "rates", "rates.stamp"]
    assert zipfile.ZipFile(tmp_path / "build.zip").namelist() == names
    (tmp_path / "build.zip").unlink()
    monkeypatch.setattr(ready, "MOST", 10)
    ready.keep_build(tmp_path)
    assert not (tmp_path / "build.zip").exists()


# ---- the script


def first(cwd: Path, *words: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [python, str(FIRST), *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_without_a_gpu_it_stops_loudly(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = first(tmp_path, "--out", "found")
    assert done.returncode == command.NOT_READY
    line = "gpu-check: nothing was measured: this torch sees no GPU (--dry-run needs none): "
    assert done.stderr.startswith(line)
    for text in (done.stdout, (tmp_path / "found/summary.md").read_text()):
        assert line in text


def test_a_python_without_torch_stops_it_loudly(tmp_path: Path) -> None:
    """The command itself needs nothing but Python; -S leaves the installed packages out."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    code = (
        f"import sys; sys.executable = {str(bare)!r}; sys.argv = ['first.py', '--out', 'found']; "
        f"import runpy; runpy.run_path({str(FIRST)!r}, run_name='__main__')"
    )
    words = [sys.executable, "-S", "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == command.NOT_READY, done.stderr
    assert "ModuleNotFoundError: No module named 'torch'" in done.stderr


def test_it_imports_no_torch() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import benchmarks.gpu_check.command; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_dry_run_is_never_among_a_device_s_results(tmp_path: Path) -> None:
    context = Context(tmp_path, dry_run=True, prebuilt=False)
    assert "results" not in command._folder(context, "x100").parts
    there = command._folder(Context(tmp_path, dry_run=False, prebuilt=False), "x/100 y")
    assert there.relative_to(ROOT) == Path("benchmarks/results/x-100-y/gpu-check")


FAKE_DEVICE = """
import sys
import torch

class Properties:
    name, major, minor, multi_processor_count, total_memory = "NVIDIA X100", 9, 0, 132, 2**37

if sys.argv[0] == "-m":  # the probe: of the others none asks for a device
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_properties = lambda _: Properties
    torch.cuda.get_device_name = lambda _: Properties.name
    torch.cuda.get_device_capability = lambda: (9, 0)
    torch.backends.cudnn.version = lambda: 91000
"""


def test_it_builds_by_itself_and_keeps_what_that_said(tmp_path: Path) -> None:
    """A small project in place of the kernels, which it then can't use."""
    search = nvcc.find_nvcc(torch.version.cuda)
    if search.nvcc is None:
        pytest.skip(f"no nvcc: {search.why_not()}")
    project, site, out = tmp_path / "project", tmp_path / "site", tmp_path / "found"
    project.mkdir()
    site.mkdir()
    tiny_project(project)
    shutil.copytree(
        ROOT / "benchmarks", project / "benchmarks", ignore=shutil.ignore_patterns("results")
    )
    (site / "sitecustomize.py").write_text(FAKE_DEVICE)
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_check/first.py", "--out", str(out)],
        cwd=project,
        env=clean_env({"PYTHONPATH": str(site)}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == command.NOT_READY, done.stderr
    # an editable install of this checkout lends the project what its own package has not
    reasons = ("importing rnnfast: ", "it was built from other sources than csrc has now")
    told = [f"the new extension can't be used either: {reason}" for reason in reasons]
    assert any(text in done.stderr for text in told), done.stderr
    assert len(list(project.glob("rnnfast/_C*.so"))) == 1
    built = rates.json.loads((project / "rnnfast/_build_info.json").read_text())
    assert (built["archs"], built["sources"]) == (["9.0"], record.digest(project / "csrc"))
    with zipfile.ZipFile(out / "results.zip") as archive:
        assert {"build.txt", "build-rates.txt", "ninja_log.txt"} <= set(archive.namelist())
        assert "_C.so" in archive.read("ninja_log.txt").decode()
    assert "CUDA on: nvcc" in (out / "log.txt").read_text()
