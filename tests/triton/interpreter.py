"""Triton's interpreter where it is not yet, or no longer, what the kernels need. A pytest plugin:
`-p tests.triton.interpreter`.

- numpy from 2.5 on takes an array of one element for no number; Triton from 3.8 on knows that.
- A comparison of two numbers that is spread over a block becomes int32 (its handle has the numbers'
  type), and from Triton 3.9 on a load or store refuses a mask that is not of numpy's bool.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
from triton.runtime import interpreter


def mend() -> None:
    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if version < (3, 8):
        _numbers_of_one_element()
    if version >= (3, 9):
        _masks_are_bool()


def _numbers_of_one_element() -> None:
    before = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


def _masks_are_bool() -> None:
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def as_bool(mask: Any) -> Any:
        return replace(mask, data=mask.data.astype(bool))

    def masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        return load(self, ptrs, as_bool(mask), *rest)

    def masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        return store(self, ptrs, value, as_bool(mask), *rest)

    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store


pytest_configure = mend
