"""Shapes by chance, one size swept, and the pictures of what was timed."""

from __future__ import annotations

import json
import math

from benchmarks import cases, plots, report, roofs, run, table

ONE, TWO, FEW = "gru-T3-B2-I4-H5", "gru-T3-B2-I9-H9", "gru-T3-B1-I4-H5"


def test_shapes_by_chance_are_the_same_each_time_and_spread():
    drawn = cases.SETS["random"]
    assert drawn == tuple(cases.by_chance(cases.RANDOM_CASES, cases.RANDOM_SEED))
    assert drawn != tuple(cases.by_chance(cases.RANDOM_CASES, cases.RANDOM_SEED + 1))
    assert len(set(drawn)) == cases.RANDOM_CASES
    for letter, (least, most) in cases.RANDOM_SIZES.items():
        found = [getattr(case, letter) for case in drawn]
        assert least <= min(found) < math.sqrt(least * most) < max(found) <= most
    assert all(case.training_flops <= cases.RANDOM_FLOPS for case in drawn)
    assert {case.cell for case in drawn} == set(cases.CLASS_NAMES)


def test_a_sweep_reaches_the_sizes_that_people_ask_for():
    swept = cases.SETS["sweep"]
    assert {16, 2048} <= {case.H for case in swept}
    assert {1, 4096} <= {case.B for case in swept}
    assert {1, 10_000} <= {case.T for case in swept}


def row(case: str, ratio: float) -> table.Row:
    return table.Row(
        case, "train", "rnnfast", "auto", "cpu", torch_ms=ratio, candidate_ms=1.0, ratio=ratio
    )


def test_a_line_of_a_sweep_is_the_largest_group_with_one_size_running():
    rows = [row("gru-T3-B2-I4-H4", 1.0), row(ONE, 2.0), row(FEW, 3.0), row("rnn-T3-B2-I6-H6", 4.0)]
    assert plots._line_of(rows, "gru", "H") == [(4, 1.0), (5, 2.0)]
    assert plots._line_of(rows, "gru", "B") == [(1, 3.0), (2, 2.0)]
    assert plots._line_of(rows, "lstm", "B") == []


def test_a_case_must_move_its_input_output_and_weights_at_least():
    values = 3 * 2 * (4 + 5) + 3 * 5 * (4 + 5 + 2)
    assert row(ONE, 1.0).intensity == row(ONE, 1.0).flops / (8 * values)


def test_no_roofs_of_a_gpu():
    assert roofs.of("cuda:0", 1) is None
    assert roofs.bandwidth(1, rounds=1) > 0


def test_a_sweep_is_run_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(run.SETS, "sweep", run.select(f"{ONE},{TWO},{FEW}"))
    asked = ["--set", "sweep", "--budget", "0.05", "--threads", "1", "--out", str(tmp_path)]
    assert run.main(asked) == 0
    shown = capsys.readouterr().out
    assert "torch's kernels taken: " in shown
    path = tmp_path / "sweep-rnnfast-auto-train-float32.csv"
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["settings"]["set"] == "sweep"
    assert report.main([str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "![sweep](sweep.png)" in text
    assert "torch's kernels were taken in " in text
    drawn = {"sweep.png"} | ({"roofline.png"} if facts["roofs"] else set())
    assert {file.name for file in tmp_path.glob("*.png")} == drawn
    if facts["roofs"]:
        assert f"peak {facts['roofs']['peak_gflops']} GF/s" in text
        assert "%) |" in text
    for name in drawn:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
