"""Rows of results: as text, as CSV and back. Files are replaced whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .cases import GATES, parse
from .measure import Pairs, Summary

NAN = math.nan
_TYPES = {"str": str, "int": int, "float": float}


@dataclass(frozen=True)
class Row:
    """One case. Times in milliseconds, overhead in microseconds a call; NaN where not timed."""

    case: str
    mode: str  # train | forward
    candidate: str
    backend: str  # asked for
    taken: str  # what it ran on
    status: str = "ok"  # ok | near | failed; of a near miss of its gate the times do not count
    reason: str = ""
    gate: float = NAN  # largest error as a share of its tolerance
    pairs: int = 0
    torch_ms: float = NAN
    torch_q1_ms: float = NAN
    torch_q3_ms: float = NAN
    torch_min_ms: float = NAN
    candidate_ms: float = NAN
    candidate_q1_ms: float = NAN
    candidate_q3_ms: float = NAN
    candidate_min_ms: float = NAN
    ratio: float = NAN  # torch / candidate, median over pairs
    ratio_q1: float = NAN
    ratio_q3: float = NAN
    ratio_low: float = NAN  # where the median may lie, 95 %
    ratio_high: float = NAN
    overhead_us: float = NAN  # candidate - torch, median over pairs
    overhead_low_us: float = NAN
    overhead_high_us: float = NAN

    @property
    def timed(self) -> bool:
        return self.status == "ok"

    @property
    def flops(self) -> int:
        case = parse(self.case)
        return case.training_flops if self.mode == "train" else case.forward_flops

    @property
    def torch_gflops(self) -> float:
        return self.flops / self.torch_ms * 1e-6

    @property
    def candidate_gflops(self) -> float:
        return self.flops / self.candidate_ms * 1e-6

    @property
    def intensity(self) -> float:
        """Floating-point operations for each byte that must pass through memory at least, of
        float32: the input, output and weights, in training their gradients too."""
        c = parse(self.case)
        values = c.T * c.B * (c.I + c.H) + GATES[c.cell] * c.H * (c.I + c.H + 2)
        return self.flops / (values * (8 if self.mode == "train" else 4))

    @property
    def overhead_percent(self) -> float:
        return 100 * (1 / self.ratio - 1)

    @property
    def overhead_percent_interval(self) -> tuple[float, float]:
        return 100 * (1 / self.ratio_high - 1), 100 * (1 / self.ratio_low - 1)


def timings(pairs: Pairs) -> dict[str, Any]:
    """The timed fields of a row; `pairs.a` is torch, `pairs.b` the candidate."""
    ratio, extra = pairs.ratio, pairs.difference
    return {
        "pairs": len(pairs.a),
        **_milliseconds("torch", Summary.of(pairs.a)),
        **_milliseconds("candidate", Summary.of(pairs.b)),
        "ratio": ratio.median,
        "ratio_q1": ratio.q1,
        "ratio_q3": ratio.q3,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "overhead_us": extra.median * 1e6,
        "overhead_low_us": extra.low * 1e6,
        "overhead_high_us": extra.high * 1e6,
    }


def _milliseconds(side: str, seconds: Summary) -> dict[str, float]:
    return {
        f"{side}_ms": seconds.median * 1e3,
        f"{side}_q1_ms": seconds.q1 * 1e3,
        f"{side}_q3_ms": seconds.q3 * 1e3,
        f"{side}_min_ms": seconds.smallest * 1e3,
    }


def geometric_mean(rows: Iterable[Row]) -> float:
    """Of the ratios of the timed rows; NaN where none was timed."""
    logs = [math.log(row.ratio) for row in rows if row.timed]
    return math.exp(sum(logs) / len(logs)) if logs else NAN


def one_line(text: str) -> str:
    """As the cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def write_csv(path: Path, rows: Sequence[Any], kind: type[Any] = Row) -> None:
    """``kind``: the rows' dataclass, of fields that are str, int or float."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def read_csv(path: Path, kind: type[Any] = Row) -> list[Any]:
    """Raises ValueError where the columns are not those of ``kind``."""
    convert = {field.name: _TYPES[str(field.type)] for field in fields(kind)}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != set(convert):
            raise ValueError(f"{path} is not a table of benchmark results: {reader.fieldnames}")
        return [kind(**{name: convert[name](text) for name, text in row.items()}) for row in reader]


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Atomic: a reader sees the old file or the new one, also after a crash. Not by rnnfast.store,
    which needs torch: benchmarks/gpu_check begins before that is installed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
