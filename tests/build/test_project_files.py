"""What GitHub, PyPI and who cites the project read: it agrees with itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rnnfast import __version__

from .support import ROOT

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (the extra dev)")

FORMS = sorted(set((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")))
FORMS = [path for path in FORMS if path.name != "config.yml"]
DOCTOR = "python -m rnnfast doctor"
PAGES = [
    path
    for pattern in ("*.md", "*.toml", "*.cff", "*.yml", "docs/**/*.md", ".github/**/*")
    for path in ROOT.glob(pattern)
    if path.is_file()
]


def fields(form: Path) -> list[dict]:
    return [
        field for field in yaml.safe_load(form.read_text())["body"] if field["type"] != "markdown"
    ]


def test_there_are_four_forms():
    assert [form.stem for form in FORMS] == ["bug", "cell", "feature", "performance"]
    names = [yaml.safe_load(form.read_text())["name"] for form in FORMS]
    assert len(set(names)) == 4


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_a_form_asks_for_what_doctor_prints(form):
    (asked,) = (field for field in fields(form) if field["id"] == "doctor")
    assert asked["attributes"]["label"] == DOCTOR
    assert asked["attributes"]["render"] == "text"
    assert asked["validations"] == {"required": True}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_the_pages_that_a_form_names_are_there(form):
    for page in re.findall(r"docs/[\w-]+\.md", form.read_text()):
        assert (ROOT / page).is_file(), page


def test_a_pull_request_is_asked_for_what_doctor_prints_and_for_tests():
    text = (ROOT / ".github/PULL_REQUEST_TEMPLATE.md").read_text()
    assert DOCTOR in text
    asked = set(re.findall(r"`make ([\w-]+)`", text))
    assert asked == {"lint", "test", "test-all"}


def test_the_repository_has_one_address():
    (address,) = re.findall(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    owner, name = address.removeprefix("https://github.com/").split("/")
    found = set()
    for path in PAGES:
        for other in re.findall(
            r"github\.com/[\w-]+/rnnfast|[\w-]+\.github\.io/\w+", path.read_text()
        ):
            found.add((str(path.relative_to(ROOT)), other))
    right = {f"github.com/{owner}/{name}", f"{owner}.github.io/{name}"}
    assert [(path, other) for path, other in sorted(found) if other not in right] == []
    assert {other for _, other in found} == right


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert headings[1].split(" - ")[0] == f"[{__version__}]"
