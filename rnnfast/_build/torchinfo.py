"""What is known of the installed torch without importing it (an import takes seconds)."""

from __future__ import annotations

import importlib.util
import runpy
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TorchInfo:
    root: Path  # the package's folder
    version: str  # "2.14.1+cu130"
    cuda: str | None  # "13.0"; None for a build without CUDA

    @property
    def cxx_standard(self) -> str:
        """The C++ standard that torch's headers demand: 17 up to some version, 20 from there on."""
        header = self.root / "include/torch/csrc/api/include/torch/all.h"
        return "c++20" if "202002L" in header.read_text() else "c++17"

    def cudart_library(self) -> Path | None:
        """The CUDA runtime of the pip wheels that torch loads; None where it uses the system's."""
        if self.cuda is None:
            return None
        major = self.cuda.split(".")[0]
        site = self.root.parent / "nvidia"
        for folder in (f"cu{major}", "cuda_runtime"):
            library = site / folder / "lib" / f"libcudart.so.{major}"
            if library.is_file():
                return library
        return None


def find_torch() -> TorchInfo | None:
    """The torch that `import torch` would give, or None."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    facts = runpy.run_path(str(root / "version.py"))
    return TorchInfo(root, str(facts["__version__"]), facts.get("cuda"))
