"""A scan as nodes of ONNX, while ``torch.onnx.export`` is at work (docs/deployment.md).

The exporter first records torch's calls and the op, then decomposes what it does not know. What
stands here answers the op in that second part, and in the first one a layer's two directions, which
are one node then. It emits torch's calls and the two things that have no torch call: ONNX's own
recurrent nodes, and its loop.

Results of a node or a loop are those of ``scratch_scan``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .decompositions import looped
from .problem import Scan, ScanResult, wide
from .products.projection import project_input
from .rules import without_padding
from .surroundings import constant_while_tracing


@constant_while_tracing
def exporting() -> bool:
    """Whether torch's calls are recorded for torch.onnx.export with ``dynamo=True``."""
    return _in_export() and get_proxy_mode() is not None


def _in_export() -> bool:
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()


def refuse_torchscript(scan: Scan) -> None:
    """torch.onnx.OnnxExporterError where the older exporter would find the op, which it doesn't
    know."""
    if _in_export():
        raise torch.onnx.OnnxExporterError(
            f"torch.onnx.export with dynamo=False has no translation of the kernel that was asked "
            f"for by name for the cell {scan.cell!r}: leave the backend to `auto`, or export with "
            "dynamo=True"
        )


class _Node(NamedTuple):
    """A node of ONNX: its name, which of the cell's gates it has at each place, its attributes."""

    name: str
    gates: tuple[int, ...]
    attributes: dict[str, Any]


_NODES = {
    "rnn_tanh": _Node("RNN", (0,), {"activations": "Tanh"}),
    "rnn_relu": _Node("RNN", (0,), {"activations": "Relu"}),
    "lstm": _Node("LSTM", (0, 3, 1, 2), {}),  # i, o, f, g
    "gru": _Node("GRU", (1, 0, 2), {"linear_before_reset": 1}),  # z, r, n
    "gru_reset_before": _Node("GRU", (1, 0, 2), {"linear_before_reset": 0}),
}


def layer_as_node(scans: Sequence[Scan]) -> list[ScanResult] | None:
    """The directions of a layer as one node, None where ONNX has none like it.

    float64 has none because onnxruntime runs such nodes in float32 and 16 bit only.
    """
    first = scans[0]
    shows_all = not first.options.all_states or len(first.states) == 1
    if (
        first.cell not in _NODES
        or first.resets is not None
        or first.dtype == torch.float64
        or not shows_all
    ):
        return None
    ready = [_for_a_node(scan) for scan in scans]
    one_input = first.kind == "dense" or _shows_tokens(first)  # for both directions
    results = _node(ready) if one_input else [_node([scan])[0] for scan in ready]
    return [result.to(first.dtype) for result in results]


def scan_as_nodes(scan: Scan) -> ScanResult:
    """One direction of one layer."""
    found = layer_as_node([scan])
    if found is not None:
        return found[0]
    # no gradients: torch would make a graph of them, which fails for some steps
    scan = scan._replace(
        input=scan.input.detach(),
        states=[s.detach() for s in scan.states],
        weights=[w.detach() for w in scan.weights],
    )
    return looped(scan.to(wide(scan.dtype))).to(
        scan.dtype
    )  # onnxruntime makes no zeros of bfloat16


# --- nodes ---------------------------------------------------------------------------------------


def _for_a_node(scan: Scan) -> Scan:
    """``scan`` with a dense input in a dtype that nodes are run in."""
    if scan.dtype == torch.bfloat16 or scan.kind != "dense":
        scan = scan.to(wide(scan.dtype))
    if scan.kind == "dense":
        return scan
    scan = without_padding(scan)
    if _shows_tokens(scan):
        columns = scan.weights[0].shape[1]
        place = torch.arange(columns, device=scan.input.device)
        one_hot = (scan.input.unsqueeze(-1) == place).to(scan.dtype)
        return scan._replace(kind="dense", input=one_hot)
    gates = project_input(scan)  # which the node multiplies by 1
    eye = torch.eye(gates.shape[-1], dtype=gates.dtype, device=gates.device)
    w_hh, b_hh = scan.weight("w_hh"), scan.weight("b_hh")
    assert w_hh is not None
    biases = [] if b_hh is None else [torch.zeros_like(b_hh), b_hh]
    return scan._replace(kind="dense", input=gates, weights=[eye, w_hh, *biases])


def _shows_tokens(scan: Scan) -> bool:
    """Whether tokens are shown to the node, as their one-hot, and not what W_ih makes of them."""
    rows, columns = scan.weights[0].shape
    return scan.kind == "tokens" and columns <= rows


def _node(scans: list[Scan]) -> list[ScanResult]:
    first, device = scans[0], scans[0].input.device
    node = _NODES[first.cell]
    T, B = first.input.shape[:2]
    D, H = len(scans), first.states[0].shape[1]
    w_ih, w_hh, *biases = (
        torch.stack([_reordered(w, node.gates) for w in both])
        for both in zip(*(scan.weights for scan in scans), strict=True)
    )
    inputs = [
        first.input,
        w_ih,
        w_hh,
        torch.cat(biases, 1) if biases else None,
        None if first.lengths is None else first.lengths.to(torch.int32),
        *(torch.stack(both) for both in zip(*(scan.states for scan in scans), strict=True)),
    ]
    shapes = [(T, D, B, H), *((D, B, H) for _ in first.states)]
    attributes = {**node.attributes, "hidden_size": H, "direction": _direction(scans)}
    if "activations" in attributes:
        attributes["activations"] = [attributes["activations"]] * D
    found = torch.onnx.ops.symbolic_multi_out(
        node.name, inputs, attributes, dtypes=[first.dtype] * len(shapes), shapes=shapes
    )
    if device.type != "cpu":  # where they are taken to be
        found = [tensor.to(device) for tensor in found]
    y, *final = (
        _of_directions(tensor, axis) for tensor, axis in zip(found, (1, 0, 0), strict=False)
    )
    return [
        ScanResult(y[i], _kept(scan, [states[i] for states in final]), [])
        for i, scan in enumerate(scans)
    ]


def _of_directions(tensor: Tensor, axis: int) -> Sequence[Tensor]:
    return tensor.unbind(axis) if tensor.shape[axis] > 1 else [tensor.squeeze(axis)]


def _direction(scans: list[Scan]) -> str:
    if len(scans) == 2:
        return "bidirectional"
    return "reverse" if scans[0].options.reverse else "forward"


def _reordered(weight: Tensor, gates: tuple[int, ...]) -> Tensor:
    if len(gates) == 1:
        return weight
    H = weight.shape[0] // len(gates)  # slices, which the exporter computes; no chunks
    return torch.cat([weight[gate * H : gate * H + H] for gate in gates])


def _kept(scan: Scan, final: list[Tensor]) -> list[Tensor]:
    """Of a sequence without a step the initial states; onnxruntime makes them 0."""
    if scan.lengths is None:
        return final
    ran = (scan.lengths > 0).unsqueeze(-1)
    return [torch.where(ran, s, s0) for s, s0 in zip(final, scan.states, strict=True)]
