"""One of those that benchmarks.forward_peers times, in a process of its own.

    PYTHON -m benchmarks.forward_peer PEER THREADS

reads lines from standard input: a JSON object says the next layer, where its numbers lie and where
to write the output; a number asks for so many calls. Answers with a line each: null, or why it
can't; the seconds of a call. torch.nn, torch.compile and rnnfast need torch; the others numpy and
what they are named after.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # of torch's gates, in ONNX's places
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
Run = Callable[[], Any]


def numbers(layer: dict[str, Any]) -> tuple[Any, list[Any]]:
    """x [T, B, I], and the weights and biases of torch's layer."""
    held = np.load(layer["numbers"])
    return held["x"], [held[name] for name in NAMES]


def by_torch(peer: str, layer: dict[str, Any], threads: int) -> Run:
    import torch

    import rnnfast

    torch.set_num_threads(threads)
    classes = rnnfast if peer == "rnnfast" else torch.nn
    made = getattr(classes, layer["kind"])(layer["I"], layer["H"])
    x, weights = numbers(layer)
    with torch.no_grad():
        for name, value in zip(NAMES, weights, strict=True):
            getattr(made, f"{name}_l0").copy_(torch.from_numpy(value))
    x = torch.from_numpy(x)
    call = torch.compile(made, dynamic=False) if peer == "torch.compile" else made

    def run() -> Any:
        with torch.no_grad():
            return call(x)[0].numpy()

    return run


def onnx_model(layer: dict[str, Any], weights: list[Any]) -> Any:
    """A model with one node, of the layer."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind, H = layer["kind"], layer["H"]
    order = list(ORDER[kind])
    w_ih, w_hh, b_ih, b_hh = (w.reshape(len(order), H, -1)[order] for w in weights)
    initial = {
        "W": w_ih.reshape(1, -1, layer["I"]),
        "R": w_hh.reshape(1, -1, H),
        "bias": np.concatenate([b_ih.ravel(), b_hh.ravel()])[None],
    }
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    node = helper.make_node(kind, ["x", "W", "R", "bias"], ["y"], hidden_size=H, **more)
    info, T, B = helper.make_tensor_value_info, layer["T"], layer["B"]
    graph = helper.make_graph(
        [node],
        "layer",
        [info("x", TensorProto.FLOAT, [T, B, layer["I"]])],
        [info("y", TensorProto.FLOAT, [T, 1, B, H])],
        [numpy_helper.from_array(value, name) for name, value in initial.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def by_onnxruntime(_: str, layer: dict[str, Any], threads: int) -> Run:
    import onnxruntime

    x, weights = numbers(layer)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(
        onnx_model(layer, weights).SerializeToString(), options, ["CPUExecutionProvider"]
    )
    return lambda: session.run(["y"], {"x": x})[0]


def by_openvino(_: str, layer: dict[str, Any], threads: int) -> Run:
    import openvino

    x, weights = numbers(layer)
    core = openvino.Core()
    model = core.read_model(onnx_model(layer, weights).SerializeToString(), b"")
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    given = openvino.Tensor(x, shared_memory=True)  # which does not keep x
    request.set_input_tensor(given)

    def run(_: Any = (given, x)) -> Any:
        request.infer()
        return request.get_output_tensor(0).data

    return run


def by_jax(_: str, layer: dict[str, Any], threads: int) -> Run:
    """``lax.scan``, compiled by XLA, on all cores that it finds."""
    import jax
    from jax import nn as jnn
    from jax import numpy as jnp

    x, weights = numbers(layer)
    w_ih, w_hh, b_ih, b_hh = map(jnp.asarray, weights)

    def lstm(gx: Any, states: Any) -> Any:
        h, c = states
        i, f, g, o = jnp.split(gx + h @ w_hh.T + b_hh, 4, -1)
        c = jnn.sigmoid(f) * c + jnn.sigmoid(i) * jnp.tanh(g)
        return jnn.sigmoid(o) * jnp.tanh(c), c

    def gru(gx: Any, states: Any) -> Any:
        (h,) = states
        (xr, xz, xn), (hr, hz, hn) = (jnp.split(g, 3, -1) for g in (gx, h @ w_hh.T + b_hh))
        z = jnn.sigmoid(xz + hz)
        return ((1 - z) * jnp.tanh(xn + jnn.sigmoid(xr + hr) * hn) + z * h,)

    def rnn(gx: Any, states: Any) -> Any:
        return (jnp.tanh(gx + states[0] @ w_hh.T + b_hh),)

    step = {"LSTM": lstm, "GRU": gru, "RNN": rnn}[layer["kind"]]

    def forward(x: Any) -> Any:
        def body(states: Any, gx: Any) -> Any:
            states = step(gx, states)
            return states, states[0]

        zeros = jnp.zeros((x.shape[1], layer["H"]))
        states = (zeros,) * (2 if layer["kind"] == "LSTM" else 1)
        return jax.lax.scan(body, states, x @ w_ih.T + b_ih)[1]

    compiled, given = jax.jit(forward), jnp.asarray(x)
    return lambda: jax.block_until_ready(compiled(given))


PEERS = {
    "rnnfast": by_torch,
    "torch.nn": by_torch,
    "torch.compile": by_torch,
    "ONNX Runtime": by_onnxruntime,
    "OpenVINO": by_openvino,
    "JAX": by_jax,
}


def main() -> None:
    peer, threads = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
    os.dup2(2, 1)
    run: Run | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        found: Any = None
        if isinstance(asked, dict):
            try:
                run = PEERS[peer](peer, asked, threads)
                for _ in range(3):
                    y = np.asarray(run())
                shape = (asked["T"], asked["B"], asked["H"])
                np.save(asked["output"], y.reshape(shape))
            except Exception as error:  # whatever a library raises: it is not timed
                run, found = None, f"{type(error).__name__}: {error}"[:300]
        else:
            assert run is not None
            begun = time.perf_counter()
            for _ in range(asked):
                run()
            found = (time.perf_counter() - begun) / asked
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
