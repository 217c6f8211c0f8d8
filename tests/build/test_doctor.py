"""The doctor's report."""

from __future__ import annotations

import re
from types import SimpleNamespace

import torch

from rnnfast import _ext, doctor, library
from rnnfast._version import __version__
from rnnfast.backends import qualified, registry


def section(report: str, title: str) -> str:
    (found,) = (s for s in report.split("\n\n") if s.splitlines()[0] == title)
    return found


def test_report_has_versions_build_tools_and_every_backend():
    report = doctor.report()
    assert __version__ in section(report, "Versions")
    assert str(torch.__version__) in section(report, "Versions")
    assert "nvcc" in section(report, "To build with")
    assert "runtimes loaded" in section(report, "OpenMP")
    backends = section(report, "Backends")
    for name, usable, reason in registry.status():
        (line,) = (x for x in backends.splitlines() if x.split()[0] == name)
        assert ("  usable" in line) == usable
        assert reason in line


def test_a_backend_that_is_not_usable_is_shown_with_its_reason(monkeypatch):
    monkeypatch.setattr(registry, "status", lambda: [("fancy", False, "it needs a fancy GPU")])
    assert "fancy  no: it needs a fancy GPU" in doctor.report()


def test_a_missing_extension_is_shown_with_its_reason(monkeypatch):
    monkeypatch.setattr(_ext, "why_missing", lambda: "built against another torch")
    monkeypatch.setattr(_ext, "build_record", lambda: None)
    monkeypatch.setattr(_ext, "why_no_cpu", lambda: "no compiler")
    monkeypatch.setattr(_ext, "why_no_cuda", lambda: "no nvcc")
    extension = section(doctor.report(), "Extension")
    for name, why in (("_C", "built against"), ("_cpu", "no compiler"), ("cuda.so", "no nvcc")):
        assert re.search(rf"{name} +not usable: {why}", extension)


def test_whether_cells_can_be_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(library, "why_not", lambda: None)
    assert f"0 so far, in {tmp_path / 'cells'}" in section(doctor.report(), "Cells of one's own")
    monkeypatch.setattr(library, "why_not", lambda: "no C++ compiler")
    assert "not here: no C++ compiler" in section(doctor.report(), "Cells of one's own")


def test_each_gpu_is_shown_and_whether_it_was_qualified(monkeypatch, tmp_path):
    gpus = [
        SimpleNamespace(name=name, major=major, minor=0, total_memory=gib << 30)
        for name, major, gib in (("NVIDIA H200", 9, 139), ("NVIDIA A100", 8, 80))
    ]
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path))
    monkeypatch.delenv("RNNFAST_TUNE", raising=False)
    monkeypatch.setattr(registry, "status", lambda: [("cuda", True, "")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    right = qualified.Trial("cuda", "grid", "lstm", "bfloat16", True, 40, 8, 128, qualified.RIGHT)
    qualified.remember(1, [right])
    rows = [line.split(maxsplit=1) for line in section(doctor.report(), "GPU").splitlines()[1:]]
    assert rows == [
        ["cuda:0", "NVIDIA H200, sm_90, 139 GiB"],
        ["cuda:0", "not qualified on this device: python -m rnnfast tune"],
        ["cuda:1", "NVIDIA A100, sm_80, 80 GiB"],
        ["cuda:1", "qualified on this kind of device: 1 of 1 trials right"],
    ]


def test_main_prints_the_report(capsys):
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.startswith("Versions\n")
