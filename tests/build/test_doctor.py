"""The doctor's report."""

from __future__ import annotations

import torch

from rnnfast import _ext, doctor, library
from rnnfast._version import __version__
from rnnfast.backends import registry


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
    extension = section(doctor.report(), "Extension")
    assert "_C    not usable: built against another torch" in extension
    assert "_cpu  not usable: no compiler" in extension


def test_whether_cells_can_be_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(library, "why_not", lambda: None)
    assert f"0 so far, in {tmp_path / 'cells'}" in section(doctor.report(), "Cells of one's own")
    monkeypatch.setattr(library, "why_not", lambda: "no C++ compiler")
    assert "not here: no C++ compiler" in section(doctor.report(), "Cells of one's own")


def test_main_prints_the_report(capsys):
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.startswith("Versions\n")
