"""The site of docs/ (mkdocs.yml): its navigation, its API, and, where its tools are, the site."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

import rnnfast

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ENTRY = re.compile(r'^\s+- (?:(?:"[^"]*"|[^:"\n]+): )?(\S+\.md)$', re.MULTILINE)
SHOWN = re.compile(r"^::: rnnfast\.([\w.]+)$", re.MULTILINE)
TOOLS = ("mkdocs", "material", "mkdocstrings", "latex2mathml", "mermaidx")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", DOCS / "site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOK = load("hook")


def test_every_page_is_in_the_navigation_once_and_nothing_else() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    made = {HOOK.page_of(path) for path in HOOK.sources()}
    assert len(made) == len(HOOK.sources())
    assert Counter(ENTRY.findall(text)) == Counter([*written, *made])


def test_the_api_has_every_public_name() -> None:
    shown = Counter(
        name for page in (DOCS / "api").glob("*.md") for name in SHOWN.findall(page.read_text())
    )
    compat = {f"compat.{name}" for name in ("RNN", "LSTM", "GRU")}
    wanted = {*rnnfast.__all__, *compat, "recurrent.RecurrentLayer.forward"}
    assert shown == Counter(wanted - {"__version__", "compat"})


@pytest.mark.parametrize(
    ("path", "page", "text", "wanted"),
    [
        ("docs/a.md", "a.md", "[c](b.md#d)", "[c](b.md#d)"),
        ("docs/a.md", "a.md", "[c](#d) [e](https://f.g)", "[c](#d) [e](https://f.g)"),
        ("docs/a.md", "a.md", "[c](../CONTRIBUTING.md#tests)", "[c](contributing.md#tests)"),
        ("docs/api/a.md", "api/a.md", "[c](../b.md)", "[c](../b.md)"),
        ("docs/a.md", "a.md", "[c](notebooks/b.ipynb)", "[c](notebooks/b.md)"),
        ("CHANGELOG.md", "changelog.md", "[`c`](docs/b.md)", "[`c`](b.md)"),
        ("CHANGELOG.md", "changelog.md", "[c](tests/b.py), [d](docs/b.md)", "c, [d](b.md)"),
        ("docs/a.md", "a.md", "![c](../benchmarks/results/d/e.png)", "![c](results/d/e.png)"),
        ("docs/a.md", "a.md", "[c](../benchmarks/results/d/report.md)", "[c](results/d.md)"),
        ("benchmarks/results/d/report.md", "results/d.md", "![c](e.png)", "![c](d/e.png)"),
        ("docs/a.md", "a.md", "```\n[c](../d.py)\n```\n", "```\n[c](../d.py)\n```\n"),
        ("docs/a.md", "a.md", r"| `a \| b` | c |", "| `a | b` | c |"),
    ],
)
def test_links_lead_to_what_became_of_the_file(
    path: str, page: str, text: str, wanted: str
) -> None:
    assert HOOK.adapted(text, path, page) == wanted


def test_links_lead_to_the_repository_where_that_is_known() -> None:
    found = HOOK.adapted("[c](../tests/b.py#L3)", "docs/a.md", "a.md", "https://x.y/z/")
    assert found == "[c](https://x.y/z/blob/main/tests/b.py#L3)"


def test_a_notebook_becomes_a_page() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "costs"]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [
                {"output_type": "stream", "text": ["1\n"]},
                {"output_type": "display_data", "data": {"image/png": "QUJD\n"}},
            ],
        },
    ]
    assert HOOK.notebook_page({"cells": cells}) == (
        "# A\ncosts\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
        '<div class="output"><img alt="" src="data:image/png;base64,QUJD"></div>\n'
    )


# --- the site itself -----------------------------------------------------------------------------


class Reader(HTMLParser):
    """What a page of the site defines, links to and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if "src" in found:
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(found["href"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def test_the_site_is_made(tmp_path: Path) -> None:
    """Without a warning; its links lead somewhere, and nothing is loaded from elsewhere."""
    for tool in TOOLS:
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed: make docs, or pip install -e .[docs]")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    pages = {page: read(page) for page in tmp_path.rglob("*.html")}
    assert len(pages) > 40
    broken = []
    for page, reader in pages.items():
        here = page.relative_to(tmp_path)
        for target in [*reader.links, *reader.loads]:
            if re.match(r"(https?|data|javascript):", target) or page.name == "404.html":
                continue
            name, _, anchor = unquote(target).partition("#")
            file = (page.parent / name).resolve() if name else page
            file = file / "index.html" if file.is_dir() else file
            if not file.exists() or (anchor and anchor not in pages[file].anchors):
                broken.append(f"{here}: {target}")
        broken += [f"{here} loads {t}" for t in reader.loads if re.match(r"(https?:)?//", t)]
    assert broken == []
    styles = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css"))
    assert not re.search(r"url\(['\"]?(https?:)?//", styles)
