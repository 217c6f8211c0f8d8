"""What mkdocs does beside rendering docs/: pages that are made of other files, and links.

The pages are written to be read in the repository too, so their links lead to its files; on the
site they lead to what became of these.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
AT_THE_TOP = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
RESULTS = "benchmarks/results"

DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^(```\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
CODE = re.compile(r"`[^`\n]+`")
BLOCK_FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
FORMULA = re.compile(r"(?<![\w$])\$([^$\n]+)\$(?!\w)")


# --- what becomes of which file ------------------------------------------------------------------


def page_of(path: str) -> str | None:
    """The page or picture of the site that a file of the repository becomes, None if none."""
    folder, name = posixpath.split(path)
    if path in AT_THE_TOP:
        return AT_THE_TOP[path]
    if path == "README.md":
        return "index.md"
    if folder.startswith(RESULTS) and name == "report.md":
        return f"results/{posixpath.basename(folder)}.md"
    if folder.startswith(RESULTS) and name.endswith(".png"):
        return f"results/{posixpath.basename(folder)}/{name}"
    if folder.startswith("docs"):
        inside = path.removeprefix("docs/")
        return inside.removesuffix(".ipynb") + ".md" if name.endswith(".ipynb") else inside
    return None


def sources() -> list[str]:
    """The files outside of docs/, and the notebooks, that pages are made of."""
    found = [*ROOT.glob(f"{RESULTS}/*/report.md"), *ROOT.glob("docs/notebooks/*.ipynb")]
    return [*AT_THE_TOP, *sorted(str(path.relative_to(ROOT)) for path in found)]


# --- Markdown as the site's renderer reads it ----------------------------------------------------


def between_fences(text: str, change: Callable[[str], str]) -> str:
    """``text`` with all but its fenced code changed."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence.group()]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def adapted(text: str, path: str, page: str, repository: str | None = None) -> str:
    """The text of file ``path`` as that of ``page``: links to what became of the files, to the
    repository's where that is known, or no links; in tables no escape of a | in code."""

    def follow(link: re.Match[str]) -> str:
        shown, words, target, anchor = link.groups()
        if re.match(r"[a-z]+:", target):
            return link.group()
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        to = page_of(file)
        if to is not None:
            target = posixpath.relpath(to, posixpath.dirname(page) or ".")
        elif repository:
            target = f"{repository.rstrip('/')}/blob/main/{file}"
        else:
            return words
        return f"{shown}[{words}]({target}{anchor or ''})"

    def change(part: str) -> str:
        lines = [
            CODE.sub(lambda code: code.group().replace(r"\|", "|"), line)
            if line.startswith("|")
            else line
            for line in part.split("\n")
        ]
        return LINK.sub(follow, "\n".join(lines))

    return between_fences(text, change)


def drawn(diagram: str) -> str:
    """Mermaid's picture of a diagram, as its script would draw it in a browser."""
    import mermaidx

    svg: str = mermaidx.render(f'%%{{init: {{"theme": "neutral"}}}}%%\n{diagram}').svg()
    width = float(svg.split('viewBox="', 1)[1].split(maxsplit=3)[2])
    image = base64.b64encode(svg.encode()).decode()
    return (
        f'<p class="diagram"><img alt="diagram" width="{width:.0f}" '
        f'src="data:image/svg+xml;base64,{image}"></p>'
    )


# --- notebooks -----------------------------------------------------------------------------------


def notebook_page(notebook: dict[str, Any]) -> str:
    return "\n\n".join(part for cell in notebook["cells"] for part in _cell(cell)) + "\n"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield between_fences(source, _formulas)
    elif cell["cell_type"] == "code":
        yield f"```python\n{source}\n```"
        for output in cell["outputs"]:
            yield _output(output)


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/svg+xml" in data:
        return f'<div class="output">\n{"".join(data["image/svg+xml"]).strip()}\n</div>'
    if "image/png" in data:
        image = "".join(data["image/png"]).replace("\n", "")
        return f'<div class="output"><img alt="" src="data:image/png;base64,{image}"></div>'
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```"


def _formulas(text: str) -> str:
    text = BLOCK_FORMULA.sub(lambda found: f"\n{_mathml(found[1], 'block')}\n", text)
    return FORMULA.sub(lambda found: _mathml(found[1], "inline"), text)


def _mathml(latex: str, display: str) -> str:
    """What browsers show without a script."""
    from latex2mathml.converter import convert

    formula: str = convert(latex, display=display)
    return f'<div class="formula">{formula}</div>' if display == "block" else formula


# --- what mkdocs calls ---------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for path in sources():
        page = page_of(path)
        assert page is not None
        text = (ROOT / path).read_text(encoding="utf-8")
        if path.endswith(".ipynb"):
            text = notebook_page(json.loads(text))
        files.append(
            File.generated(config, page, content=adapted(text, path, page, config.repo_url))
        )
    for picture in sorted(ROOT.glob(f"{RESULTS}/*/*.png")):
        to = page_of(str(picture.relative_to(ROOT)))
        assert to is not None
        files.append(File.generated(config, to, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.generated_by is not None:
        return markdown
    text = adapted(markdown, f"docs/{page.file.src_uri}", page.file.src_uri, config.repo_url)
    return DIAGRAM.sub(lambda found: drawn(found[1]), text)
