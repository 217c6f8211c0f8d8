"""Checkpoints: one file per training run, written whole or not at all."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..store import replacing

FORMAT = "rnnfast.text checkpoint"
VERSION = 1


class CheckpointError(RuntimeError):
    """The file is no checkpoint of ours, is damaged, or belongs to another run."""


def save(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> None:
    """Write ``payload`` (tensors, numbers, strings, lists, dicts), replacing ``path`` at the end.

    Raises:
        OSError: it cannot be written, for example on a full disk; an older file stays.
    """
    with replacing(path) as stream:
        torch.save({"format": FORMAT, "version": VERSION, **payload}, stream)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save` wrote, on the CPU. Nothing but plain data is unpickled.

    Raises:
        CheckpointError: the file is missing, damaged, or something else.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: wrong checksum of its part {damaged}")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is damaged or is no checkpoint: {_first_line(error)}"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by rnnfast.text")
    if payload["version"] != VERSION:
        raise CheckpointError(f"{path} has version {payload['version']}, this is {VERSION}")
    return payload


def differences(payload: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """Where ``payload`` belongs to another run than ``identity`` says, in words."""
    return [
        f"{key} is {payload.get(key)!r} there and {wanted!r} here"
        for key, wanted in identity.items()
        if payload.get(key) != wanted
    ]


def require_same(
    path: str | os.PathLike[str], payload: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Raise CheckpointError, naming every difference, unless ``payload`` has ``identity``."""
    found = differences(payload, identity)
    if found:
        raise CheckpointError(f"{path} belongs to another run: " + "; ".join(found))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
