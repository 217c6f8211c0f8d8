"""Triton's interpreter as numpy from 2.5 on needs it: an array of one element is no number there.

Triton from 3.8 on does so itself. A plugin of pytest: `-p tests.triton.interpreter`.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.runtime import interpreter


def mend() -> None:
    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8):
        return
    before = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


pytest_configure = mend
