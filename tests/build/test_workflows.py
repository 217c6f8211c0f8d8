"""The workflows of GitHub: they call what there is, test what is claimed, and may do little.

`make lint` holds them to GitHub's schema; here is what a schema can't know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .support import ROOT

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (the extra dev)")

Job = dict[str, Any]
FOLDER = ROOT / ".github/workflows"
FILES = sorted(FOLDER.glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()
PAGE = " ".join((ROOT / "docs/build.md").read_text().split())


def load(path: Path) -> dict[Any, Any]:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


def jobs() -> Iterator[tuple[str, Job]]:
    """("ci.yml: lint", the job) of every workflow."""
    for path in FILES:
        for name, job in load(path)["jobs"].items():
            yield f"{path.name}: {name}", job


JOBS = dict(jobs())


def triggers(path: Path) -> set[str]:
    return set(load(path)[True])  # YAML 1.1 reads `on` as true


def matrix(job: Job) -> set[tuple[str, str]]:
    """(Python, torch) of each run of a job, as GitHub makes them of lists, exclude and include."""
    axes = job["strategy"]["matrix"]
    pairs = {(p, t) for p in axes.get("python", ()) for t in axes.get("torch", ())}
    pairs -= {(one["python"], one["torch"]) for one in axes.get("exclude", ())}
    return pairs | {(one["python"], one["torch"]) for one in axes.get("include", ())}


# --- make ----------------------------------------------------------------------------------------


class Make(NamedTuple):
    targets: tuple[str, ...]
    variables: dict[str, str]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.MULTILINE))


def calls(job: Job) -> list[Make]:
    """The calls of make in the job's steps."""
    found = []
    for step in job["steps"]:
        for line in re.findall(r"\bmake ([^\n;&|]+)", step.get("run", "")):
            words = re.findall(r'[A-Z]+="[^"]*"|[A-Z]+=\$\{\{[^}]*\}\}|\S+', line)
            variables = dict(word.split("=", 1) for word in words if "=" in word)
            found.append(Make(tuple(word for word in words if "=" not in word), variables))
    return found


@pytest.mark.parametrize("name", JOBS)
def test_the_targets_of_make_are_in_the_makefile(name):
    for call in calls(JOBS[name]):
        assert call.targets
        assert set(call.targets) - targets() == set()


def test_what_the_workflows_are_for_is_called():
    called = {name: [t for call in calls(job) for t in call.targets] for name, job in JOBS.items()}
    assert called == {
        "ci.yml: lint": ["lint"],
        "ci.yml: test": ["test"],
        "ci.yml: cuda": ["setup"],
        "docs.yml: site": ["docs"],
        "docs.yml: deploy": [],
        "gpu.yml: gpu-check": ["gpu-check"],
        "nightly.yml: all": ["test-all"],
        "release.yml: sdist": ["sdist", "check-dist"],
        "release.yml: wheel": ["wheel", "check-dist"],
        "release.yml: try": ["check-dist"],
        "release.yml: publish": [],
    }
    assert JOBS["ci.yml: cuda"]["env"] == {"RNNFAST_CUDA": "1"}
    assert JOBS["nightly.yml: all"]["env"] == {"RNNFAST_CUDA": "1"}


# --- versions ------------------------------------------------------------------------------------


def pythons() -> list[str]:
    low, high = re.findall(r"requires-python = \">=3\.(\d+),<3\.(\d+)\"", PYPROJECT)[0]
    return [f"3.{minor}" for minor in range(int(low), int(high))]


def torches() -> tuple[str, dict[str, str]]:
    """The oldest torch, and the newest one for each Python, as docs/build.md has them."""
    pattern = (
        r"Python 3\.10 to 3\.14, each with torch ([\d.]+) and ([\d.]+), where "
        r"Python ([\d.]+) has ([\d.]+) \(there is no wheel"
    )
    (found,) = re.findall(pattern, PAGE)
    oldest, newest, exception, its = found
    return oldest, dict.fromkeys(pythons(), newest) | {exception: its}


@pytest.mark.parametrize("job", ["ci.yml: test", "release.yml: try"])
def test_every_python_is_tested_with_the_oldest_and_the_newest_torch(job):
    oldest, newest = torches()
    wanted = {(python, torch) for python in pythons() for torch in (oldest, newest[python])}
    assert matrix(JOBS[job]) == wanted


def test_the_oldest_torch_is_the_one_that_is_claimed():
    (claimed,) = re.findall(r"^  \"torch>=([\d.]+)\",", PYPROJECT, re.MULTILINE)
    assert torches()[0] == f"{claimed}.0"
    assert f"torch$(if $(TORCH),==$(TORCH),>={claimed})" in MAKEFILE


def test_pythons_are_those_of_the_classifiers():
    classified = re.findall(r"Programming Language :: Python :: (3\.\d+)", PYPROJECT)
    assert classified == pythons()


@pytest.mark.parametrize("name", JOBS)
def test_the_python_that_is_set_up_is_the_one_that_make_takes(name):
    job = JOBS[name]
    set_up = [
        step["with"]["python-version"] for step in job["steps"] if "setup-python" in str(step)
    ]
    asked = [call.variables["PYTHON"] for call in calls(job) if "PYTHON" in call.variables]
    if "container" not in job:  # which has every Python
        assert asked == set_up
    for version in asked:
        assert version in (*pythons(), "${{ matrix.python }}")
    if "strategy" in job:
        assert [call.variables["TORCH"] for call in calls(job)] == ["${{ matrix.torch }}"]


# --- what they may do ----------------------------------------------------------------------------

MAY_WRITE = {
    "docs.yml: deploy": {"pages": "write", "id-token": "write"},
    "release.yml: publish": {"id-token": "write"},
}


@pytest.mark.parametrize("name", JOBS)
def test_permissions_are_the_least(name):
    assert JOBS[name]["permissions"] == MAY_WRITE.get(name, {"contents": "read"})
    assert "timeout-minutes" in JOBS[name]
    for step in JOBS[name]["steps"]:
        if "actions/checkout" in step.get("uses", ""):
            assert step["with"] == {"persist-credentials": False}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_gives_nothing_by_itself_and_runs_once(path):
    found = load(path)
    assert found["permissions"] == {}
    assert "group" in found["concurrency"]
    assert triggers(path) <= {"push", "pull_request", "schedule", "workflow_dispatch"}
    for job in found["jobs"].values():
        needs = job.get("needs", [])
        assert {needs} if isinstance(needs, str) else set(needs) <= set(found["jobs"])


def test_only_a_tag_is_uploaded_and_only_main_is_deployed():
    assert (
        JOBS["release.yml: publish"]["if"]
        == "github.event_name == 'push' && github.ref_type == 'tag'"
    )
    assert JOBS["release.yml: publish"]["environment"]["name"] == "pypi"
    assert (
        JOBS["docs.yml: deploy"]["if"]
        == "github.ref == 'refs/heads/main' && !github.event.repository.fork"
    )


def test_nobody_from_outside_runs_code_on_a_machine_of_the_projects_own():
    own = [name for name, job in JOBS.items() if "self-hosted" in job["runs-on"]]
    assert own == ["gpu.yml: gpu-check"]
    assert JOBS[own[0]]["if"] == "vars.GPU_RUNNER == 'true'"
    assert triggers(FOLDER / "gpu.yml") == {"schedule", "workflow_dispatch"}


def test_actions_are_pinned_by_hash_and_each_to_one():
    lines = [line for path in FILES for line in path.read_text().splitlines() if "uses:" in line]
    assert len(lines) > 10
    pins = set()
    for line in lines:
        found = re.fullmatch(r"\s*(?:- )?uses: ([\w/-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", line)
        assert found, line
        pins.add(found.groups())
    assert len({action for action, _, _ in pins}) == len(pins)


def test_lint_reads_every_file():
    checked = re.findall(r"check-jsonschema -q --builtin-schema \S+ (.*)", MAKEFILE)
    assert {".github/workflows/*.yml", ".github/dependabot.yml", "CITATION.cff"} <= set(checked)
    assert any(".github/ISSUE_TEMPLATE/*.yml" in files for files in checked)
    assert {path.suffix for path in (ROOT / ".github").rglob("*.y*ml")} == {".yml"}
