"""The backend ``cuda``: the native kernels for NVIDIA GPUs (csrc/cuda)."""

from .backend import Cuda
from .lanes import Lanes, Mark

__all__ = ["Cuda", "Lanes", "Mark"]
