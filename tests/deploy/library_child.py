"""Run in a process that has torch and librnnfast.so, and can't import rnnfast: what its op says to
wrong input, by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

T, B, I, H, P = 4, 3, 5, 6, 2
BFLOAT16, FLOAT32, META = torch.bfloat16, torch.float32, torch.device("meta")


def scan(cell: str = "gru", kind: str = "dense", dtype: torch.dtype = FLOAT32) -> dict[str, Any]:
    """Arguments that fit."""
    GH, width = {"gru": 3, "lstm_proj": 4}[cell] * H, P if cell == "lstm_proj" else H
    ih = [] if kind == "gates" else [(GH, I), (GH,)]
    shapes = [*ih[:1], (GH, width), *ih[1:], (GH,), *([(P, H)] if cell == "lstm_proj" else [])]
    x = torch.randn(T, B, GH if kind == "gates" else I, dtype=dtype)
    states = [torch.zeros(B, n, dtype=dtype) for n in (width, H)[: 2 if "lstm" in cell else 1]]
    return {
        "cell": cell,
        "kind": kind,
        "input": torch.randint(I, (T, B)) if kind == "tokens" else x,
        "states": states,
        "weights": [torch.randn(shape, dtype=dtype) for shape in shapes],
        "lengths": torch.tensor([T, 2, 0]),
        "resets": torch.zeros(T, B, dtype=torch.bool),
        "reverse": False,
        "all_states": False,
        "training": False,
        "checkpoint_every": 0,
        "grad_clip_time": 0.0,
        "backend": "cpu",
    }


def changed(**changes: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {**scan(), **changes}


def item(name: str, index: int, value: Any, **more: Any) -> Callable[[], dict[str, Any]]:
    """The arguments with one tensor of a list changed; ``value`` may be made of the tensor."""

    def make() -> dict[str, Any]:
        given = scan(**more)
        given[name][index] = value(given[name][index]) if callable(value) else value
        return given

    return make


def of(more: dict[str, Any], **changes: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {**scan(**more), **changes}


def taller(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_zeros(tensor.shape[0] + 1, *tensor.shape[1:])


GOOD = {
    "as it is": changed(),
    "of a GPU": changed(backend="cuda"),
    "of Triton": changed(backend="triton"),
    "of gates": of({"kind": "gates"}),
    "of tokens": of({"kind": "tokens"}),
    "projected": of({"cell": "lstm_proj"}),
    "no sequences": changed(
        input=torch.zeros(T, 0, I),
        states=[torch.zeros(0, H)],
        lengths=torch.zeros(0, dtype=torch.int64),
        resets=None,
    ),
    "no features": lambda: {
        **scan(),
        "input": torch.zeros(T, B, 0),
        "weights": [torch.zeros(3 * H, 0), *scan()["weights"][1:]],
    },
    "tokens in the padding": of(
        {"kind": "tokens"}, input=torch.full((T, B), -1), lengths=torch.zeros(B, dtype=torch.int64)
    ),
}
BAD: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "cell": (changed(cell="layer_norm_lstm"), "no compiled cell layer_norm_lstm.*decompositions"),
    "kind": (changed(kind="sparse"), "no kind of input is called sparse"),
    "backend": (changed(backend="nonsense"), "no backend is called nonsense"),
    "training": (changed(backend="cuda", training=True), "training by the backend cuda.*no_grad"),
    "checkpoints": (changed(training=True, checkpoint_every=2), "torch.no_grad"),
    "no states": (changed(states=[]), "takes 1 states, got 0"),
    "states": (changed(states=[torch.zeros(B, H)] * 2), "takes 1 states, got 2"),
    "no weights": (changed(weights=[]), "takes 2 weights, or 4 with biases, got 0"),
    "weights": (changed(weights=scan()["weights"][:3]), "takes 2 weights.*got 3"),
    "projection": (of({"cell": "lstm_proj"}, weights=scan()["weights"]), "takes 3 weights.*got 4"),
    "input of 2-D": (changed(input=torch.zeros(T, I)), "input must have 3 dimensions, got 2"),
    "input of 4-D": (changed(input=torch.zeros(T, B, I, 1)), "input must have 3 dimensions"),
    "no steps": (changed(input=torch.zeros(0, B, I)), "larger than 0"),
    "sparse": (changed(input=torch.zeros(T, B, I).to_sparse()), "input must be strided"),
    "meta": (changed(input=torch.zeros(T, B, I, device=META)), "input is on another device"),
    "meta weight": (item("weights", 0, lambda w: w.to(META)), "w_ih is on another device"),
    "input's dtype": (changed(input=torch.zeros(T, B, I).double()), "input should be of dtype Flo"),
    "state's dtype": (item("states", 0, lambda h: h.double()), "state h should be of dtype Float"),
    "bias' dtype": (item("weights", 3, lambda b: b.int()), "b_hh should be of dtype Float, got I"),
    "integers": (
        lambda: {**scan(), "weights": [w.int() for w in scan()["weights"]]},
        "expected float32, float64, bfloat16 or float16, got Int",
    ),
    "complex": (
        lambda: {**scan(), "weights": [w + 0j for w in scan()["weights"]]},
        "expected float32.*got Complex",
    ),
    "w_ih": (item("weights", 0, taller), r"w_ih should be \[18, 5\], got \[19, 5\]"),
    "w_ih, 1-D": (item("weights", 0, torch.zeros(18)), "w_ih must have 2 dimensions|w_ih should"),
    "w_hh": (item("weights", 1, taller), r"w_hh should be \[3\*H, P\], got \[19, 6\]"),
    "w_hh, wide": (item("weights", 1, torch.zeros(18, 7)), r"w_hh should be \[18, 6\]"),
    "w_hh, empty": (item("weights", 1, torch.zeros(0, 6)), r"w_hh should be \[3\*H, P\]"),
    "b_ih": (item("weights", 2, taller), r"b_ih should be \[18\], got \[19\]"),
    "b_hh": (item("weights", 3, torch.zeros(18, 1)), r"b_hh should be \[18\], got \[18, 1\]"),
    "w_hr": (
        item("weights", 4, taller, cell="lstm_proj"),
        r"w_hr should be \[2, 6\], got \[3, 6\]",
    ),
    "h": (item("states", 0, taller), r"state h should be \[3, 6\], got \[4, 6\]"),
    "c": (item("states", 1, taller, cell="lstm_proj"), r"state c should be \[3, 6\], got \[4, 6\]"),
    "c, 16 bit": (
        item("states", 1, lambda c: c.float(), cell="lstm_proj", dtype=BFLOAT16),
        "state c should be of dtype BFloat16",
    ),
    "gates": (of({"kind": "gates"}, input=torch.zeros(T, B, 17)), r"gates should be \[4, 3, 18\]"),
    "lengths": (changed(lengths=torch.tensor([1, 2])), r"lengths should be \[3\], got \[2\]"),
    "lengths' dtype": (changed(lengths=torch.ones(B).int()), "lengths should be of dtype Long"),
    "a length above T": (changed(lengths=torch.tensor([1, 5, 2])), r"in \[0, 4\], found 5"),
    "a length below 0": (changed(lengths=torch.tensor([1, -1, 2])), r"in \[0, 4\], found -1"),
    "resets": (changed(resets=torch.zeros(B, T, dtype=torch.bool)), r"resets should be \[4, 3\]"),
    "resets' dtype": (changed(resets=torch.zeros(T, B)), "resets should be of dtype Bool"),
    "tokens": (of({"kind": "tokens"}, input=torch.zeros(T, B)), "input should be of dtype Long"),
    "a token": (of({"kind": "tokens"}, input=torch.full((T, B), I)), "token out of range.*found 5"),
    "a token below 0": (of({"kind": "tokens"}, input=torch.full((T, B), -7)), "found -7"),
}


def main(library: str, found: str) -> None:
    torch.ops.load_library(library)
    said = {}
    for name, (make, _) in {**BAD, **{name: (make, "") for name, make in GOOD.items()}}.items():
        try:
            torch.ops.rnnfast.scan_forward(**make())
            said[name] = "" if name in GOOD else "no error"
        except RuntimeError as error:
            said[name] = str(error)
    torch.save(said, found)


if __name__ == "__main__":
    sys.modules["rnnfast"] = None  # type: ignore[assignment]  # an import of it raises
    main(*sys.argv[1:])
