"""The cells: what each is called, what it holds, and one step of it in plain torch.

A step here is the readable specification. The C++ cells (csrc/cells) and those in Triton
(rnnfast/triton/cells) carry the same names, the same facts and the same order of gates, and the
tests compare them.

Shapes in this folder: B batch, I input size, H hidden size, P output size (the projection's, else
H), G gates.
"""

from .blocks import block_linear
from .built_in import BUILT_IN  # before the family: CELLS is in this order
from .family import FAMILY
from .own import CELLS, OwnCell, cell
from .spec import CellSpec, Param, Product, States, StepWeights, Value
from .step_error import StepError

__all__ = [
    "BUILT_IN",
    "CELLS",
    "FAMILY",
    "CellSpec",
    "OwnCell",
    "Param",
    "Product",
    "States",
    "StepError",
    "StepWeights",
    "Value",
    "block_linear",
    "cell",
]
