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

from .problem import Scan, ScanResult, changed, wide
from .products.projection import project_input
from .rules import alive, without_padding
from .scratch import advance
from .surroundings import constant_while_tracing


@constant_while_tracing
def exporting() -> bool:
    """Whether torch's calls are recorded for torch.onnx.export with ``dynamo=True``."""
    return _in_export() and get_proxy_mode() is not None


def _in_export() -> bool:
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()


def refuse_torchscript(scan: Scan) -> None:
    """torch.onnx.OnnxExporterError where the older exporter would find the op, which it does not
    know."""
    if _in_export():
        raise torch.onnx.OnnxExporterError(
            f"torch.onnx.export with dynamo=False can't export the cell {scan.cell!r} as it is "
            "called here: it knows what torch.nn's layers do, without resets and all states. With "
            "dynamo=True it can."
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
    return [result.to(first.dtype) for result in _node([_for_a_node(scan) for scan in scans])]


def scan_as_nodes(scan: Scan) -> ScanResult:
    """One direction of one layer."""
    found = layer_as_node([scan])
    return _loop(scan) if found is None else found[0]


# --- nodes ---------------------------------------------------------------------------------------


def _for_a_node(scan: Scan) -> Scan:
    """``scan`` with a dense input in a dtype that nodes are run in."""
    if scan.dtype == torch.bfloat16 or scan.kind != "dense":
        scan = scan.to(wide(scan.dtype))
    if scan.kind == "dense":
        return scan
    scan = without_padding(scan)
    rows, columns = scan.weights[0].shape
    if scan.kind == "tokens" and columns <= rows:
        place = torch.arange(columns, device=scan.input.device)
        one_hot = (scan.input.unsqueeze(-1) == place).to(scan.dtype)
        return scan._replace(kind="dense", input=one_hot)
    gates = project_input(scan)  # which the node multiplies by 1
    eye = torch.eye(gates.shape[-1], dtype=gates.dtype, device=gates.device)
    rest = _inner(scan).weights
    weights = [eye, *rest]
    if scan.has_bias:
        weights = [eye, rest[0], torch.zeros_like(rest[1]), rest[1]]
    return scan._replace(kind="dense", input=gates, weights=weights)


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


# --- a loop --------------------------------------------------------------------------------------


def _loop(scan: Scan) -> ScanResult:
    """ONNX's Scan over the steps, with the cell's step as its body."""
    storage = scan.dtype
    scan = without_padding(scan).to(wide(storage))
    scan = scan._replace(options=changed(scan.options, grad_clip_time=0.0))
    marks = [mark for mark in (alive(scan), scan.resets) if mark is not None]
    series = [project_input(scan), *marks]
    if scan.options.reverse:
        series = [values.flip(0) for values in series]
    inner, n = _inner(scan), len(scan.states)

    def body(*given: Tensor) -> list[Tensor]:
        states, (gx, *rest) = given[:n], given[n : n + len(series)]
        live = None if scan.lengths is None else rest.pop(0)
        reset = None if scan.resets is None else rest.pop(0)
        weights = inner._replace(weights=list(given[n + len(series) :])).step_weights()
        after, shown = advance(scan, weights, states, gx, live, reset)
        return [s.clone() for s in (*after, *shown)]  # no output may be another, or an input

    # no gradients: a graph of them would be made, and fail for some steps
    given = [[t.detach() for t in tensors] for tensors in (scan.states, series, inner.weights)]
    found = torch.ops.higher_order.scan(body, given[0], given[1], tuple(given[2]))
    final, (y, *trace) = list(found[:n]), found[n:]
    if scan.options.reverse:
        y, *trace = (values.flip(0) for values in (y, *trace))
    return ScanResult(y, final, trace if scan.options.all_states else []).to(storage)


def _inner(scan: Scan) -> Scan:
    """``scan`` without the weights of the projection."""
    names = scan.spec.weight_names(scan.kind, scan.has_bias)
    weights = [w for name, w in zip(names, scan.weights, strict=True) if name not in _OF_INPUT]
    return scan._replace(kind="gates", weights=weights)


_OF_INPUT = ("w_ih", "b_ih")
