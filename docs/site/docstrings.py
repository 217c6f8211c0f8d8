"""Docstrings for the API reference: Sphinx' roles and names of pages become Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?([^`]+)`")
LITERAL = re.compile(r"``([^`]+)``")
PAGE = re.compile(r"\bdocs/([\w-]+)\.md\b")
PAPER = re.compile(r"\barXiv:(\d{4}\.\d{5})\b")
ARGUMENT = re.compile(r"(?<=\.)\n(?=`)")  # one that begins a line after a sentence


def as_markdown(docstring: str) -> str:
    """Pages of the API stand in a folder of their own, hence the dots."""
    text = LITERAL.sub(r"`\1`", ROLE.sub(r"`\1`", docstring))
    text = PAPER.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", PAGE.sub(r"[\1](../\1.md)", text))
    return ARGUMENT.sub("\n\n", text)


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
