"""The benchmark suite's own parts: what it compares, what it refuses to time, what it writes down.

No test looks at how long anything took.
"""

from __future__ import annotations

import json
import math
import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import cases, gate, machine, measure, overhead, report, run, table, workload

TINY = "gru-T3-B2-I4-H5"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(name=TINY, dtype=torch.float32, mode="train", candidate="torch.nn"):
    return workload.build(cases.parse(name), candidate, dtype=dtype, device="cpu", mode=mode)


# --- cases


def test_cases_are_the_published_eighteen():
    sizes = [
        "T32-B1024-I28-H32",
        "T35-B32-I28-H256",
        "T100-B64-I256-H256",
        "T100-B1-I128-H128",
        "T100-B32-I512-H512",
        "T50-B64-I1024-H1024",
    ]
    expected = [f"{cell}-{size}" for cell in ("lstm", "gru", "rnn") for size in sizes]
    assert [case.name for case in cases.CASES] == expected


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("lstm-T35-B32-I28-H256", 651_427_840),
        ("gru-T100-B1-I128-H128", 19_660_800),
        ("rnn-T1-B1-I1-H1", 4),
    ],
)
def test_flops(name, forward):
    case = cases.parse(name)
    assert (case.forward_flops, case.training_flops) == (forward, 3 * forward)


def test_select_by_pattern_part_and_full_name():
    assert cases.select("*") == cases.CASES
    assert [case.cell for case in cases.select("gru")] == ["gru"] * 6
    assert [case.name for case in cases.select("*-H256,rnn-T100-B1-*")] == [
        "lstm-T35-B32-I28-H256",
        "lstm-T100-B64-I256-H256",
        "gru-T35-B32-I28-H256",
        "gru-T100-B64-I256-H256",
        "rnn-T35-B32-I28-H256",
        "rnn-T100-B64-I256-H256",
        "rnn-T100-B1-I128-H128",
    ]
    assert cases.select(f"{TINY},rnn-T35-*")[-1] == cases.Case("gru", 3, 2, 4, 5)
    for nothing in ("transformer", "elman-T3-B2-I4-H5", "gru,xyz"):
        with pytest.raises(ValueError, match="no case matches"):
            cases.select(nothing)


# --- workload and gate


def test_both_sides_have_the_same_weights_and_data_but_no_tensor_in_common():
    reference, candidate = build()
    assert torch.equal(reference.x, candidate.x)
    assert torch.equal(reference.dy, candidate.dy)
    assert reference.x.data_ptr() != candidate.x.data_ptr()
    for ours, theirs in zip(
        candidate.layer.parameters(), reference.layer.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


def test_a_call_computes_every_gradient_afresh():
    work, _ = build()
    first = gate.results(work)
    assert set(first) == {"y", "h_n", "dx"} | {
        f"d{name}" for name, _ in work.layer.named_parameters()
    }
    for name, value in gate.results(work).items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=0)
    work.prepare()
    assert work.x.grad is None
    assert all(parameter.grad is None for parameter in work.layer.parameters())


def test_forward_mode_needs_no_gradient():
    work, _ = build("lstm-T3-B2-I4-H5", mode="forward")
    y, state = work()
    assert not y.requires_grad
    assert set(gate.results(work)) == {"y", "h_n", "c_n"}
    assert len(state) == 2


class StepwiseGRU(nn.GRU):
    """Right, but not torch's sequence kernel: the gate must let another order of sums through."""

    def forward(self, x):
        h, outputs = x.new_zeros(x.shape[1], self.hidden_size), []
        for step in x:
            h = torch.gru_cell(step, h, *self._flat_weights)
            outputs.append(h)
        return torch.stack(outputs), h[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gate_accepts_another_implementation(dtype):
    reference, candidate = build("gru-T20-B4-I6-H8", dtype)
    layer = StepwiseGRU(6, 8, dtype=dtype)
    layer.load_state_dict(candidate.layer.state_dict())
    candidate.layer = layer
    verdict = gate.check(reference, candidate)
    assert verdict.passed, verdict.reason
    assert verdict.reason == ""
    assert len(verdict.deviations) == 7
    assert 0 <= verdict.worst <= 1


class Amplify(torch.autograd.Function):
    """The identity, with a gradient that is `factor` times too large."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def unseen(value):
    """Zero, with a gradient of 1 for every element of `value`."""
    return value.sum() - value.sum().detach()


# Each changes one thing of a right layer: (layer, x, its forward) -> what it then returns.
PLANTED = {
    "y": lambda layer, x, forward: (forward(x)[0] * (1 + 1e-4), forward(x)[1]),
    "h_n": lambda layer, x, forward: (forward(x)[0], forward(x)[1] + 1e-4),
    "dx": lambda layer, x, forward: forward(Amplify.apply(x, 1.001)),
    "dweight_hh_l0": lambda layer, x, forward: (
        forward(x)[0] + 1e-3 * unseen(layer.weight_hh_l0),
        forward(x)[1],
    ),
    "dbias_ih_l0": lambda layer, x, forward: (
        forward(x)[0] + 1e-3 * unseen(layer.bias_ih_l0),
        forward(x)[1],
    ),
    "y: expected": lambda layer, x, forward: (forward(x)[0].double(), forward(x)[1]),
    "h_n: expected": lambda layer, x, forward: (forward(x)[0], forward(x)[1][0]),
    "dx: missing": lambda layer, x, forward: forward(x.detach()),
    "y: error nan": lambda layer, x, forward: (forward(x)[0] * math.nan, forward(x)[1]),
}


def planted_layer(error, base=nn.GRU):
    class Wrong(base):
        def forward(self, x):
            return PLANTED[error](self, x, super().forward)

    return Wrong


@pytest.mark.parametrize("error", PLANTED)
def test_gate_rejects_a_planted_error(error):
    reference, candidate = build()
    candidate.layer.__class__ = planted_layer(error)
    verdict = gate.check(reference, candidate)
    assert not verdict.passed
    assert error in verdict.reason


def test_gate_in_float64_rejects_what_float32_would_not_notice():
    reference, candidate = build(dtype=torch.float64)
    assert gate.check(reference, candidate).passed
    with torch.no_grad():
        candidate.layer.weight_hh_l0[0, 0] += 1e-10
    assert not gate.check(reference, candidate).passed


# --- rows and files


def row(**changes):
    pairs = measure.Pairs((2e-3, 2.2e-3, 2.1e-3, 2.0e-3), (1e-3, 1.1e-3, 1.2e-3, 0.9e-3))
    known = {"case": TINY, "mode": "train", "candidate": "rnnfast", "backend": "auto"}
    return table.Row(**{**known, "taken": "torch", "gate": 0.5, **table.timings(pairs), **changes})


FAILED = row(status="failed", reason='y: "bad", a\nline', ratio=math.nan, gate=math.inf)


def test_row_derives_rates_and_overhead():
    one = row()
    assert one.pairs == 4
    assert one.torch_ms == pytest.approx(2.05)
    assert one.candidate_ms == pytest.approx(1.05)
    assert one.overhead_us == pytest.approx(-1050)
    assert one.torch_gflops == pytest.approx(cases.parse(TINY).training_flops / 2.05e-3 * 1e-9)
    forward = row(mode="forward")
    assert forward.candidate_gflops == pytest.approx(one.candidate_gflops / 3)
    slower = row(ratio=0.8, ratio_low=0.5, ratio_high=1.0)
    assert slower.overhead_percent == pytest.approx(25)
    assert slower.overhead_percent_interval == pytest.approx((0, 100))


def test_geometric_mean_leaves_failed_rows_out():
    assert table.geometric_mean([row(ratio=4.0), row(ratio=1.0), FAILED]) == pytest.approx(2.0)
    assert math.isnan(table.geometric_mean([FAILED]))


def test_csv_round_trip(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    table.write_csv(path, [row(), FAILED])
    first, second = table.read_csv(path)
    assert first == row()
    assert repr(second) == repr(FAILED)  # NaN differs from itself
    (tmp_path / "other.csv").write_text("case,ratio\nx,1\n")
    with pytest.raises(ValueError, match="not a table of benchmark results"):
        table.read_csv(tmp_path / "other.csv")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    table.write_text(path, "old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_overhead_verdicts():
    assert overhead.verdict(-5, 30, 30) == "within"
    assert overhead.verdict(29, 31, 30) == "unclear"
    assert overhead.verdict(31, 40, 30) == "over"
    dear = row(ratio_low=0.9, ratio_high=0.95, overhead_low_us=31.0, overhead_high_us=50.0)
    assert (overhead.percent_verdict(dear), overhead.microseconds_verdict(dear)) == ("over", "over")
    closing = overhead.summary([dear, row(), FAILED])
    assert "30 µs: 1 within, 0 unclear, 1 over; 3 %: 1 within, 0 unclear, 1 over" in closing
    assert "FAILED" in overhead.line(FAILED)
    bare = row(case="gru-T1-B1-I1-H1", ratio_low=0.5, ratio_high=0.6)
    assert (overhead.percent_verdict(bare), overhead.microseconds_verdict(bare)) == ("-", "within")
    assert "3 %: 0 within, 0 unclear, 0 over" in overhead.summary([bare])


# --- machine


def test_machine_facts_are_json_and_name_the_essentials():
    facts = json.loads(json.dumps(machine.facts("cpu")))
    assert facts["torch"]["version"] == torch.__version__
    assert facts["torch"]["threads"] == 1
    assert facts["cpu"]["model"]
    assert facts["gpu"] is None


def test_machine_reads_linux_files(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU @ 2.0GHz\n")
    assert machine.cpu_model(tmp_path / "cpuinfo") == "Some CPU @ 2.0GHz"
    for index, content in enumerate([("1", "Data", "48K"), ("2", "Unified", "2048K")]):
        (tmp_path / f"index{index}").mkdir()
        for name, text in zip(("level", "type", "size"), content, strict=True):
            (tmp_path / f"index{index}" / name).write_text(f"{text}\n")
    assert machine.caches(tmp_path) == {"L1 Data": "48K", "L2 Unified": "2048K"}
    assert machine.git(tmp_path) is None


def test_slug(monkeypatch):
    monkeypatch.setattr(machine, "cpu_model", lambda: "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz")
    monkeypatch.setattr(machine.measured, "isa", lambda: "avx512")
    assert machine.slug("cpu", 2) == "cpu-intel-xeon-gold-6130-cpu-avx512-2-threads"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    assert machine.slug("cuda", 2) == "cuda-nvidia-l4"


# --- end to end


def arguments(tmp_path, *more):
    return ["--cases", TINY, "--budget", "0.05", "--threads", "1", "--out", str(tmp_path), *more]


def test_run_and_report_a_tiny_case(tmp_path, capsys):
    assert run.main(arguments(tmp_path, "--candidate", "torch.nn")) == 0
    shown = capsys.readouterr().out
    assert TINY in shown
    assert "geometric mean of 1 ratios" in shown
    path = tmp_path / "torch-nn-train-float32-partial.csv"
    (one,) = table.read_csv(path)
    assert (one.case, one.status, one.taken) == (TINY, "ok", "torch.nn")
    assert one.pairs >= measure.MIN_PAIRS
    assert one.torch_ms > 0
    assert json.loads(path.with_suffix(".json").read_text())["settings"]["budget"] == 0.05
    assert report.main([str(path)]) == 0
    assert TINY in (tmp_path / "report.md").read_text()
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("more", [[], ["--overhead"], ["--backend", "reference"]])
def test_run_times_rnnfast(tmp_path, more):
    assert run.main(arguments(tmp_path, *more)) == 0
    (path,) = tmp_path.glob("*.csv")
    *bare, one = table.read_csv(path)
    assert [each.case for each in bare] == [
        f"{cell}-T1-B1-I1-H1" for cell in ("lstm", "gru", "rnn") if "--overhead" in more
    ]
    assert one.candidate == "rnnfast"
    if more:  # what was asked for; --overhead asks for torch where auto takes another
        assert one.taken == ("reference" if "reference" in more else "torch")
    else:
        assert one.taken in ("cpu", "torch")


def test_a_wrong_layer_is_reported_and_not_timed(tmp_path, monkeypatch, capsys):
    wrong = SimpleNamespace(GRU=planted_layer("dx"))
    monkeypatch.setattr(workload, "_namespace", lambda candidate: wrong)

    def never(*_, **__):
        raise AssertionError("timed a layer whose gate is red")

    monkeypatch.setattr(measure, "alternate", never)
    assert run.main(arguments(tmp_path, "--candidate", "torch.nn")) == 1
    assert "FAILED: dx: error" in capsys.readouterr().out
    (one,) = table.read_csv(tmp_path / "torch-nn-train-float32-partial.csv")
    assert (one.status, one.pairs) == ("failed", 0)


def test_a_layer_that_raises_fails_its_case_only(tmp_path, monkeypatch):
    class Raises(nn.RNN):
        def forward(self, x):
            raise RuntimeError("no kernel for this")

    monkeypatch.setattr(
        workload, "_namespace", lambda candidate: SimpleNamespace(GRU=nn.GRU, RNN=Raises)
    )
    more = ["--candidate", "torch.nn", "--cases", f"rnn-T2-B1-I1-H1,{TINY}"]
    assert run.main(arguments(tmp_path, *more)) == 1
    rows = table.read_csv(tmp_path / "torch-nn-train-float32-partial.csv")
    assert [one.status for one in rows] == ["failed", "ok"]
    assert rows[0].reason == "RuntimeError: no kernel for this"


def test_a_layer_that_changes_the_thread_count_stops_the_run(tmp_path, monkeypatch):
    class Greedy(nn.GRU):
        def forward(self, x):
            torch.set_num_threads(2)
            return super().forward(x)

    monkeypatch.setattr(workload, "_namespace", lambda candidate: SimpleNamespace(GRU=Greedy))
    with pytest.raises(RuntimeError, match="2 threads instead of 1"):
        run.main(arguments(tmp_path, "--candidate", "torch.nn"))
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--cases", "nothing"], "no case matches"),
        (["--threads", "0"], "at least one"),
        (["--candidate", "torch.nn", "--backend", "torch"], "has none"),
        (["--overhead", "--backend", "torch"], "leave --backend out"),
    ],
)
def test_bad_options_say_what_is_wrong(tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments(tmp_path, *more))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_overhead_asks_for_torch_where_auto_would_not_take_it(monkeypatch):
    asked = []

    class FakeUse:
        def __init__(self, name):
            asked.append(name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    def explain(layer, x):
        chosen = "cpu" if asked[-1] == "auto" else asked[-1]
        return SimpleNamespace(choices=[SimpleNamespace(chosen=chosen)])

    fake = SimpleNamespace(use_backend=FakeUse, explain=explain)
    monkeypatch.setattr(workload, "_namespace", lambda candidate: fake)
    work, _ = build_plain()
    assert workload.choose_backend("rnnfast", "auto", work) == ("auto", "cpu")
    assert workload.choose_backend("rnnfast", "auto", work, torch_only=True) == ("torch", "torch")


def build_plain():
    layer, x = nn.GRU(4, 5), torch.zeros(3, 2, 4)
    return workload.LayerWork(layer, x, torch.zeros(3, 2, 5), "train"), x


def test_report_marks_losses_and_failures():
    facts = {
        **machine.facts("cpu"),
        "settings": {"threads": 1, "dtype": "float32", "mode": "train", "overhead": False},
    }
    slow = row(case="rnn-T1-B1-I1-H1", ratio=0.5)
    text = report.markdown("auto", [row(ratio=2.0), slow, FAILED], facts)
    assert "Geometric mean of 2 cases: **1.00**" in text
    assert "Slower than torch.nn: 1 of 2: rnn-T1-B1-I1-H1 (0.50)." in text
    assert "**0.50** (loss)" in text
    assert 'failed, not timed: y: "bad", a line' in text
    facts["settings"]["overhead"] = True
    text = report.markdown("overhead", [row(), FAILED], facts)
    assert "| within |" in text
    assert 'failed, not timed: y: "bad", a line' in text
    assert "Slower than torch.nn" not in text
