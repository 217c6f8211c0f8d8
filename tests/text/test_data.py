"""Where data files are looked for, and that a wrong one is named and never used."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from rnnfast.text import data
from rnnfast.text.data import DataCorrupt, DataFile, DataUnavailable


def put(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


def source_of(file: DataFile) -> Path:
    return Path(file.url.removeprefix("file://"))


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads are allowed; the url of `tiny_file` is a local file."""
    monkeypatch.delenv("RNNFAST_OFFLINE")


def test_given_folder_comes_first(tiny_file, tmp_path, monkeypatch):
    content = source_of(tiny_file).read_bytes()
    given = put(tmp_path / "given", "tiny.txt", content)
    put(data.cache_folder(), "tiny.txt", content)
    monkeypatch.setenv("RNNFAST_DATA", str(given.parent))
    assert data.find(tiny_file) == given


def test_cache_comes_before_the_download(tiny_file, online, monkeypatch):
    cached = put(data.cache_folder(), "tiny.txt", source_of(tiny_file).read_bytes())

    def refuse(*arguments, **options):
        raise AssertionError("a download although the cache is good")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert data.find(tiny_file) == cached


def test_download_is_kept_in_the_cache(tiny_file, online):
    path = data.find(tiny_file)
    assert path == data.cache_folder() / "tiny.txt"
    assert path.read_bytes() == source_of(tiny_file).read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.txt"]


def test_default_cache_folder(monkeypatch):
    monkeypatch.delenv("RNNFAST_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data.cache_folder() == Path("/home/someone/.cache/rnnfast")


def test_corrupt_given_file_is_an_error(tiny_file, tmp_path, monkeypatch, online):
    given = put(tmp_path / "given", "tiny.txt", b"something else")
    monkeypatch.setenv("RNNFAST_DATA", str(given.parent))
    with pytest.raises(DataCorrupt, match=r"given/tiny\.txt .*SHA-1 is .* \(14 bytes\), expected"):
        data.load_or_standin(tiny_file)
    assert given.read_bytes() == b"something else"


def test_corrupt_cache_is_downloaded_anew(tiny_file, online):
    cached = put(data.cache_folder(), "tiny.txt", b"half a downl")
    assert data.find(tiny_file).read_bytes() == source_of(tiny_file).read_bytes()
    assert data.find(tiny_file) == cached


def test_corrupt_cache_offline_is_named_and_not_used(tiny_file):
    cached = put(data.cache_folder(), "tiny.txt", b"half a downl")
    with pytest.raises(DataUnavailable) as caught:
        data.find(tiny_file)
    assert f"cache: {cached} is not used: SHA-1 is" in str(caught.value)
    assert "download: forbidden by RNNFAST_OFFLINE" in str(caught.value)


def test_corrupt_download_is_not_kept(tiny_file, online):
    source_of(tiny_file).write_bytes(b"<html>please log in</html>")
    with pytest.raises(DataUnavailable, match=r"download: file://.* is not used: SHA-1 is"):
        data.find(tiny_file)
    assert not (data.cache_folder() / "tiny.txt").exists()


def test_endless_download_is_cut(tiny_file, online):
    with source_of(tiny_file).open("ab") as stream:
        stream.write(b"x" * 1_000_000)
    with pytest.raises(DataUnavailable, match=rf"\({tiny_file.size + 1} bytes\)"):
        data.find(tiny_file)


def test_everything_tried_is_named(tiny_file, tmp_path, monkeypatch, online):
    source_of(tiny_file).unlink()
    monkeypatch.setenv("RNNFAST_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataUnavailable) as caught:
        data.find(tiny_file)
    message = str(caught.value)
    assert f"RNNFAST_DATA: no file {tmp_path / 'nowhere' / 'tiny.txt'}" in message
    assert f"cache: no file {data.cache_folder() / 'tiny.txt'}" in message
    assert f"download: {tiny_file.url}: " in message


def test_download_has_a_time_limit(tiny_file, online, monkeypatch):
    seen = {}

    def slow(url, timeout=None):
        seen["timeout"] = timeout
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request, "urlopen", slow)
    with pytest.raises(DataUnavailable, match="timed out"):
        data.find(tiny_file)
    assert seen["timeout"] == data.DOWNLOAD_TIMEOUT_SECONDS


def test_connection_that_breaks_off_is_reported(tiny_file, online, monkeypatch):
    import http.client

    class Broken:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return None

        def read(self, limit):
            raise http.client.IncompleteRead(b"half")

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Broken())
    with pytest.raises(DataUnavailable, match="IncompleteRead"):
        data.find(tiny_file)


def test_unwritable_cache_is_reported(tiny_file, online, monkeypatch, tmp_path):
    blocked = put(tmp_path, "a_file", b"")
    monkeypatch.setenv("RNNFAST_CACHE", str(blocked / "below"))
    with pytest.raises(DataUnavailable, match=r"is good, but .* cannot be written"):
        data.find(tiny_file)


def test_standin_is_english_and_says_what_it_is(tiny_file):
    text, reason = data.load_or_standin(tiny_file)
    assert text.is_standin
    assert text.title.startswith("STAND-IN: pydoc_data.topics of Python 3.")
    assert len(text.content) > 300_000
    assert " the " in text.content
    assert "RNNFAST_OFFLINE" in reason


def test_real_file_needs_no_reason(tiny_file, online):
    text, reason = data.load_or_standin(tiny_file)
    assert not text.is_standin
    assert text.title == "The Tiny Text"
    assert reason is None


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = put(tmp_path, "latin.txt", "caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text: byte 3"):
        data.read_text(path)


def test_byte_order_mark_is_dropped(tmp_path):
    assert data.read_text(put(tmp_path, "bom.txt", b"\xef\xbb\xbfabc")) == "abc"
