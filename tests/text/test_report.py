"""The checks, the table and the files of a comparison."""

from __future__ import annotations

import csv
from dataclasses import replace
from types import SimpleNamespace

import pytest

from rnnfast.text import report
from rnnfast.text.train import EpochResult, History


def run_of(name: str, perplexities: list[float], losses: list[float], standin: bool = False):
    """Looks like a TrainingRun to the report, with the history that a test needs."""
    history = History(
        perplexity=perplexities,
        tokens=[8960] * len(perplexities),
        seconds=[0.1 if name == "torch" else 0.05] * len(perplexities),
        first_losses=losses,
    )
    corpus = SimpleNamespace(title="a text", is_standin=standin)
    return SimpleNamespace(
        implementation=name,
        history=history,
        epoch=len(perplexities),
        corpus=corpus,
        title="a text",
    )


def test_agreement_is_relative_and_takes_the_worst_step():
    theirs = run_of("torch", [1.0], [2.0] * 50)
    close = run_of("rnnfast", [1.0], [2.0] * 49 + [2.0001])
    far = run_of("rnnfast", [1.0], [2.0] * 20 + [1.999] + [2.0] * 29)
    found = report.agreement_check(close, theirs)
    assert found.passed is True
    assert found.finding == "largest difference 5.0e-05 in 50 steps"
    found = report.agreement_check(far, theirs)
    assert found.passed is False
    assert "5.0e-04" in found.finding
    assert str(found).startswith("[FAIL] copied weights")


def test_a_loss_that_is_nan_does_not_agree():
    nan = run_of("rnnfast", [1.0], [float("nan")])
    assert report.agreement_check(nan, run_of("torch", [1.0], [2.0])).passed is False


@pytest.mark.parametrize(("last", "passed"), [(1.329, True), (1.331, False)])
def test_perplexity_is_the_mean_of_the_last_ten_epochs(last, passed):
    swing = [last - 0.1, last + 0.1] * 5
    found = report.perplexity_check(run_of("torch", [9.0] * 490 + swing, []))
    assert found.passed is passed
    assert found.finding == f"{last:.3f}"


def test_perplexity_is_not_judged_on_a_stand_in_or_a_short_run():
    on_standin = report.perplexity_check(run_of("torch", [9.0] * 500, [], standin=True))
    assert on_standin.passed is None
    assert "the target is for the real text" in str(on_standin)
    short = report.perplexity_check(run_of("torch", [9.0] * 499, []))
    assert short.passed is None
    assert "[not checked]" in str(short)


def test_checks_compare_with_the_last_run():
    runs = [run_of("rnnfast", [1.0], [2.0]), run_of("torch", [1.0], [2.0])]
    assert [check.passed for check in report.checks(runs)] == [True, None, None]
    assert len(report.checks(runs[1:])) == 1


def test_table_has_speed_and_ratio():
    runs = [run_of("rnnfast", [9.0] * 10 + [2.0] * 9 + [1.0], []), run_of("torch", [3.0], [])]
    header, rule, ours, theirs = report.table(runs).splitlines()
    speeds = ["179,200", *"179,200 – 179,200 2.00 2.00 – 2.00".split()]
    assert ours.split() == ["rnnfast", "20", "1.900", "1.000", *speeds]
    assert theirs.split()[:5] == ["torch.nn", "1", "3.000", "3.000", "89,600"]
    assert theirs.split()[-4:] == ["1.00", "1.00", "–", "1.00"]
    assert len(header) == len(rule) == len(ours) == len(theirs)


def test_files(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    runs = [run_of("rnnfast", [3.0, 2.5], [1.1, 1.0]), run_of("torch", [3.1], [1.2, 1.05])]
    report.write_curves(tmp_path / "curves.csv", runs)
    with open(tmp_path / "curves.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["implementation"], row["epoch"], row["perplexity"]) for row in rows] == [
        ("rnnfast", "1", "3.0"),
        ("rnnfast", "2", "2.5"),
        ("torch", "1", "3.1"),
    ]
    report.write_first_steps(tmp_path / "first.csv", runs)
    assert (tmp_path / "first.csv").read_text() == "step,rnnfast,torch\n1,1.1,1.2\n2,1.0,1.05\n"
    report.write_plot(tmp_path / "curves.png", runs)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_history_feeds_the_first_steps():
    history = History()
    history.add(EpochResult([1.0] * 8, [4] * 8, 0.5))
    run = run_of("torch", [], [])
    run.history = replace(history)
    assert report.relative_differences(run.history.first_losses, [1.0, 2.0]) == [0.0, 0.5]
