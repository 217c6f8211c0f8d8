"""Find a data file: the user's folder, the cache, a download. Only a right SHA-1 is used."""

from __future__ import annotations

import hashlib
import http.client
import os
import platform
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ..store import replacing

DOWNLOAD_TIMEOUT_SECONDS = 15.0


class DataUnavailable(RuntimeError):
    """No usable copy of a data file; the message names every place that was tried."""


class DataCorrupt(DataUnavailable):
    """The copy in the folder that the user named has the wrong SHA-1."""


@dataclass(frozen=True)
class DataFile:
    """A file known by its content: its name, size in bytes, SHA-1 and where to download it."""

    name: str
    size: int
    sha1: str
    url: str
    title: str

    def problem(self, content: bytes) -> str | None:
        """Why ``content`` is not this file, or None where it is."""
        found = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        if found == self.sha1:
            return None
        return f"SHA-1 is {found} ({len(content)} bytes), expected {self.sha1} ({self.size} bytes)"


@dataclass(frozen=True)
class Text:
    """A text and where it came from.

    ``is_standin`` is true for the text that replaces a data file which could not be had.
    """

    title: str
    content: str
    origin: str
    is_standin: bool = False


TIME_MACHINE = DataFile(
    name="timemachine.txt",
    size=178_979,
    sha1="090b5e7e70c295757f55df93cb0a180b9691891a",
    url="http://d2l-data.s3-accelerate.amazonaws.com/timemachine.txt",
    title="The Time Machine (H. G. Wells)",
)


def cache_folder() -> Path:
    """``RNNFAST_CACHE``, or ``~/.cache/rnnfast``."""
    return Path(os.environ.get("RNNFAST_CACHE") or "~/.cache/rnnfast").expanduser()


def find(file: DataFile) -> Path:
    """The path of a checked copy of ``file``.

    Looks in the folder named by ``RNNFAST_DATA``, then in the cache, then downloads into the cache.
    A cached copy with a wrong SHA-1 is downloaded anew. ``RNNFAST_OFFLINE=1`` forbids the download.

    Raises:
        DataCorrupt: ``RNNFAST_DATA`` holds a file of that name with other content.
        DataUnavailable: no place has it; the message lists what was tried.
    """
    tried: list[str] = []
    given = _in_given_folder(file, tried)
    if given is not None:
        return given
    cached = cache_folder() / file.name
    if _is_good_cache(file, cached, tried) or _download(file, cached, tried):
        return cached
    listing = "\n".join(f"  - {line}" for line in tried)
    raise DataUnavailable(f"{file.name} could not be found; tried:\n{listing}")


def read_text(path: str | os.PathLike[str]) -> str:
    """The UTF-8 text in ``path``.

    Raises:
        ValueError: the file is not UTF-8; the message names the byte.
        OSError: the file cannot be read.
    """
    raw = Path(path).read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start}: {error.reason}") from error


def load(file: DataFile) -> Text:
    """`find` and read ``file``; raises what `find` raises."""
    path = find(file)
    return Text(title=file.title, content=read_text(path), origin=str(path))


def standin() -> Text:
    """The help text of Python's own standard library (`pydoc_data.topics`).

    About 465,000 characters of English technical prose; it differs a little between the versions
    of Python, which the title therefore names.
    """
    from pydoc_data.topics import topics

    version = platform.python_version()
    return Text(
        title=f"STAND-IN: pydoc_data.topics of Python {version}",
        content="\n".join(topics[name] for name in sorted(topics)),
        origin="pydoc_data.topics",
        is_standin=True,
    )


def load_or_standin(file: DataFile) -> tuple[Text, str | None]:
    """``file``'s text, or the stand-in and the reason why it had to be taken.

    Raises:
        DataCorrupt: the user's own copy is corrupt; that is for the user to mend, not to hide.
    """
    try:
        return load(file), None
    except DataCorrupt:
        raise
    except DataUnavailable as error:
        return standin(), str(error)


def _in_given_folder(file: DataFile, tried: list[str]) -> Path | None:
    folder = os.environ.get("RNNFAST_DATA")
    if not folder:
        tried.append("RNNFAST_DATA: not set")
        return None
    path = Path(folder).expanduser() / file.name
    if not path.is_file():
        tried.append(f"RNNFAST_DATA: no file {path}")
        return None
    problem = file.problem(path.read_bytes())
    if problem is not None:
        raise DataCorrupt(
            f"{path} (from RNNFAST_DATA) is not used: {problem}. Replace or remove it."
        )
    return path


def _is_good_cache(file: DataFile, path: Path, tried: list[str]) -> bool:
    if not path.is_file():
        tried.append(f"cache: no file {path}")
        return False
    problem = file.problem(path.read_bytes())
    if problem is not None:
        tried.append(f"cache: {path} is not used: {problem}")
    return problem is None


def _download(file: DataFile, path: Path, tried: list[str]) -> bool:
    if os.environ.get("RNNFAST_OFFLINE", "0") not in ("", "0"):
        tried.append("download: forbidden by RNNFAST_OFFLINE")
        return False
    try:
        with urllib.request.urlopen(file.url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            content = response.read(file.size + 1)
    except (OSError, http.client.HTTPException) as error:
        tried.append(f"download: {file.url}: {error!r}")
        return False
    problem = file.problem(content)
    if problem is not None:
        tried.append(f"download: {file.url} is not used: {problem}")
        return False
    try:
        with replacing(path) as stream:
            stream.write(content)
    except OSError as error:
        tried.append(f"download: {file.url} is good, but {path} cannot be written: {error}")
        return False
    return True
