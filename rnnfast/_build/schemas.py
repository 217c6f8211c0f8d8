"""The schemas of the custom ops, for both languages: rnnfast/schema.py defines the ops by them, and
the build hands them to csrc/ops/library.cpp."""

from __future__ import annotations

INPUTS = (
    "str cell, str kind, Tensor input, Tensor[] states, Tensor[] weights, Tensor? lengths, "
    "Tensor? resets, bool reverse, bool all_states, bool training, int checkpoint_every, "
    "float grad_clip_time, str backend"
)
SCHEMAS = (
    f"scan_forward({INPUTS}) -> (Tensor y, Tensor[] final, Tensor[] trace, Tensor[] saved)",
    f"scan_backward({INPUTS}, Tensor? dy, Tensor[] dfinal, Tensor[] dtrace, Tensor y, "
    "Tensor[] trace, Tensor[] saved, bool[] needs, int groups) "
    "-> (Tensor dinput, Tensor[] dstates, Tensor[] dweights)",
)
