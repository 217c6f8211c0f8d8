"""`benchmarks.run` where things go wrong: what is kept, told and not counted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import gate, measure, report, run, table, workload

TINY, OTHER = "gru-T3-B2-I4-H5", "rnn-T2-B1-I1-H1"
FILE = "torch-nn-train-float32-partial.csv"


def arguments(tmp_path, *more):
    fixed = ["--candidate", "torch.nn", "--budget", "0.05", "--threads", "1", "--out"]
    return [*fixed, str(tmp_path), *more]


def instead(monkeypatch, **layers):
    """The candidate's layers are torch.nn's but for these."""
    base = {"GRU": nn.GRU, "RNN": nn.RNN}
    monkeypatch.setattr(workload, "_namespace", lambda _: SimpleNamespace(**{**base, **layers}))


def test_a_near_miss_is_timed_and_told_and_does_not_count(tmp_path, monkeypatch, capsys):
    class Near(nn.GRU):
        def forward(self, x):
            y, h = super().forward(x)
            return y + 1e-6 * y.abs().max(), h  # 4 eps and a little are allowed

    instead(monkeypatch, GRU=Near)
    assert run.main(arguments(tmp_path, "--cases", TINY)) == 1
    (one,) = table.read_csv(tmp_path / FILE)
    assert (one.status, one.timed) == ("near", False)
    assert one.gate > 1
    assert one.gate <= gate.NEAR
    assert one.ratio > 0
    assert one.reason.startswith("y: error")
    shown = capsys.readouterr().out
    assert "NEAR MISS: y: error" in shown
    assert "geometric mean of 0 ratios" in shown
    report.main([str(tmp_path / FILE)])
    assert "near miss, not counted: y: error" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("found", [float("nan"), float("inf"), 5.0])
def test_what_is_far_off_is_no_near_miss(found):
    right = gate.Deviation("dx", 1.5, 1.0)
    assert gate.Verdict((right,)).near
    assert not gate.Verdict((right, gate.Deviation("y", found, 1.0))).near
    assert not gate.Verdict((gate.Deviation("y", 0.5, 1.0),)).near


def test_rows_are_written_as_they_come(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    class Hangs(nn.GRU):
        def forward(self, x):
            raise Killed

    instead(monkeypatch, GRU=Hangs)
    with pytest.raises(Killed):
        run.main(arguments(tmp_path, "--cases", f"{OTHER},{TINY}"))
    (one,) = table.read_csv(tmp_path / FILE)
    assert (one.case, one.status) == (OTHER, "ok")


def test_a_complete_run_leaves_no_partial_file(tmp_path, monkeypatch):
    monkeypatch.setitem(run.SETS, "cases", run.select(f"{OTHER},{TINY}"))
    assert run.main(arguments(tmp_path, "--cases", f"{OTHER},{TINY}")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "torch-nn-train-float32.csv",
        "torch-nn-train-float32.json",
    ]


def test_no_case_runs_on_a_device_that_an_earlier_one_has_lost(monkeypatch):
    def lost(_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def failed(case, settings):
        return table.Row(case.name, "train", "rnnfast", "cuda", "cuda", status="failed")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setattr(run, "measure_case", failed)
    cuda = run.Settings("rnnfast", "cuda", "cuda", "float32", "train", 1, 1.0, False, 0)
    rows = run.run(run.select(f"{OTHER},{TINY}"), cuda)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert next(rows).case == OTHER
    with pytest.raises(RuntimeError, match="illegal memory access"):
        next(rows)
    torch.set_num_threads(before)


def test_the_warm_up_waits_for_the_device_too():
    timed = []

    class Work:
        def prepare(self):
            pass

        def __call__(self):
            pass

    def timer(work):
        timed.append(work)
        return 1.0

    measure.alternate(Work(), Work(), 0.0, timer=timer)
    assert len(timed) == 2 * (measure.WARMUP_CALLS + measure.MIN_PAIRS)
