"""Qualifying a GPU: each strategy of each backend is checked against float64 and timed against
torch's kernels, in processes that may hang or crash (``python -m rnnfast tune``)."""

from .run import Report, qualify
from .spread import FULL, QUICK, Case, Way, ways

__all__ = ["FULL", "QUICK", "Case", "Report", "Way", "qualify", "ways"]
