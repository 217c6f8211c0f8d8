"""ONNX Runtime's time of single steps, for benchmarks.streaming, which runs this file alone.

    PYTHON streaming_onnx.py PROBLEM.json

Needs onnx, onnxruntime and numpy, and neither torch nor rnnfast. Prints the seconds of each batch
of calls as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

# of torch's gates, those that ONNX has at each place
ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def session(problem: dict[str, Any]) -> Any:
    """Of a graph with one node, which takes x and the states and gives them back."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    kind, H, B = problem["kind"], problem["hidden"], problem["batch"]
    order = ORDER[kind]

    def gates(values: list[float]) -> Any:
        return np.asarray(values, np.float32).reshape(len(order), H, -1)[list(order)]

    w_ih, w_hh, b_ih, b_hh = (gates(w) for w in problem["weights"])
    initial = {
        "W": w_ih.reshape(1, -1, H),
        "R": w_hh.reshape(1, -1, H),
        "Bias": np.concatenate([b_ih.ravel(), b_hh.ravel()])[None],
    }
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    node = helper.make_node(
        kind,
        ["x", "W", "R", "Bias", "", *states],
        ["", *(f"{s}_new" for s in states)],
        hidden_size=H,
        **more,
    )
    shape = [1, B, H]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "step",
        [info(n, TensorProto.FLOAT, shape) for n in ("x", *states)],
        [info(f"{s}_new", TensorProto.FLOAT, shape) for s in states],
        [numpy_helper.from_array(value, name) for name, value in initial.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem["threads"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options), states


def main() -> None:
    import numpy as np

    problem = json.loads(Path(sys.argv[1]).read_text())
    made, states = session(problem)
    zeros = np.zeros((1, problem["batch"], problem["hidden"]), np.float32)

    def step(feeds: dict[str, Any]) -> dict[str, Any]:
        found = made.run(None, feeds)
        return {"x": feeds["x"], **dict(zip(states, found, strict=True))}

    feeds = {"x": zeros, **dict.fromkeys(states, zeros)}
    for x, y in zip(problem["x"], problem["y"], strict=True):
        feeds = step({**feeds, "x": np.asarray(x, np.float32)[None]})
        assert np.abs(feeds["h"][0] - np.asarray(y)).max() < 1e-5, "not the same layer"
    times = []
    end = time.perf_counter() + problem["seconds"]
    while time.perf_counter() < end or len(times) < 8:
        start = time.perf_counter()
        for _ in range(problem["calls"]):
            feeds = step(feeds)
        times.append(time.perf_counter() - start)
    print(json.dumps(times[len(times) // 10 :]))


if __name__ == "__main__":
    main()
