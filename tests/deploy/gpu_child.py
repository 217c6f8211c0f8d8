"""The op of librnnfast.so on two devices that stand in for GPUs (tests/build/devices.cpp), in a
process without rnnfast: ``python gpu_child.py DEVICES LIBRARY PROGRAM`` prints as JSON what each
call launched, or its error's text."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.export.passes import move_to_device_pass

T, B, I, H = 4, 3, 5, 40
SHAPES = {  # gates, states, whether there is W_hr
    "rnn_tanh": (1, 1, 0),
    "rnn_relu": (1, 1, 0),
    "lstm": (4, 2, 0),
    "lstm_proj": (4, 2, 1),
    "gru": (3, 1, 0),
    "gru_reset_before": (3, 1, 0),
    "mgu": (2, 1, 0),
}
STRATEGIES = ("stepwise", "resident", "cluster:blocks=3", "grid:blocks=3", "")


def given(cell: str, device: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    gates, states, projected = SHAPES[cell]
    P = 8 if projected else H
    shapes = [(gates * H, I), (gates * H, P), (gates * H,), (gates * H,), *[(P, H)] * projected]
    widths = (P, H)[:states]
    return {
        "cell": cell,
        "kind": "dense",
        "input": torch.ones(T, B, I, device=device, dtype=dtype),
        "states": [torch.ones(B, width, device=device, dtype=dtype) for width in widths],
        "weights": [torch.ones(shape, device=device, dtype=dtype) for shape in shapes],
        "lengths": None,
        "resets": None,
        "reverse": False,
        "all_states": False,
        "training": False,
        "checkpoint_every": 0,
        "grad_clip_time": 0.0,
        "backend": "cuda",
    }


def main(devices: str, library: str, program: str) -> None:
    stand_in = ctypes.CDLL(devices)
    torch.ops.load_library(library)
    op = torch.ops.rnnfast.scan_forward
    noted: dict[str, Any] = {}

    def note(name: str, task: Callable[[], Any]) -> None:
        taken(stand_in)
        try:
            result = task()
            noted[name] = {"launched": taken(stand_in), "shapes": result}
        except (RuntimeError, ValueError) as error:
            noted[name] = str(error)

    def shapes(found: Any) -> Any:
        if isinstance(found, torch.Tensor):
            return [str(found.device), *found.shape]
        return [shapes(one) for one in found]

    def by(strategy: str, call: dict[str, Any]) -> Any:
        os.environ["RNNFAST_PLAN"] = strategy
        return shapes(op(**call))

    for cell in SHAPES:
        note(cell, lambda cell=cell: by("", given(cell, "cuda:0")))
    for strategy in STRATEGIES:
        other = given("lstm", "cuda:0")
        other["input"] = torch.ones(T + 1 + len(strategy), B, I, device="cuda:0").bfloat16()
        note(f"by {strategy}", lambda s=strategy, call=other: by(s, call))
    note("device 1", lambda: by("", given("gru", "cuda:1")))
    with torch.cuda.stream(torch.cuda.Stream("cuda:1")), torch.cuda.device(0):
        note("side stream", lambda: by("resident", given("lstm", "cuda:1")))
    wrong = given("gru", "cuda:0")
    wrong["weights"][1] = wrong["weights"][1].cpu()
    note("a weight on the host", lambda: by("", wrong))
    elsewhere = given("gru", "cpu")
    elsewhere["weights"][0] = elsewhere["weights"][0].cuda()
    note("a weight on a device", lambda: by("", elsewhere))
    note("a shape", lambda: by("", {**given("gru", "cuda:0"), "states": []}))
    note("a plan", lambda: by("fastest", given("gru", "cuda:1", torch.float16)))
    loaded = torch.export.load(program)
    moved = move_to_device_pass(loaded, "cuda:0").module()
    x = torch.ones(9, 2, I, device="cuda:0")
    os.environ["RNNFAST_PLAN"] = "stepwise"
    note("a program", lambda: shapes(moved(x)))
    print(json.dumps(noted))


def taken(stand_in: ctypes.CDLL) -> list[list[str]]:
    """What was launched: its symbol, the device, and of which device the stream is."""
    text = ctypes.create_string_buffer(1 << 20)
    stand_in.stand_in_log(text, ctypes.c_size_t(len(text)))
    return [line.split()[:3] for line in text.value.decode().splitlines()]


if __name__ == "__main__":
    sys.modules["rnnfast"] = None  # type: ignore[assignment]  # an import of it raises
    main(*sys.argv[1:])
