"""torch.onnx.export of the layers as it is, checked by onnxruntime."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import rnnfast
from rnnfast.backends import registry
from tests import test_docs

from .onnx_models import (
    LAYERS,
    NODES,
    Case,
    Model,
    assert_close,
    cases,
    check,
    exported,
    inputs_of,
    nodes_of,
    run,
)

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra deploy-tests)")
onnxruntime = import_module("onnxruntime")


@pytest.fixture(scope="module", autouse=True)
def _one_registry() -> Iterator[None]:
    """torch makes its registry of translations anew at each export, which takes a second; here it
    makes one."""
    kind = import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    make = functools.lru_cache(maxsize=None)(kind.from_torchlib)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "from_torchlib", staticmethod(make))
        yield


FEW = {
    "reverse": Case("lstm", bidirectional=True, batch_first=True, bias=False),
    "states": Case("gru", layers=2, bidirectional=True, states=True),
    "lengths": Case("lstm", layers=2, bidirectional=True, states=True, lengths=True),
    "lengths, gru": Case("gru_reset_before", bidirectional=True, states=True, lengths=True),
    "lengths, loop": Case("lstm_proj", bidirectional=True, states=True, lengths=True),
    "resets": Case("gru", resets=True, states=True, lengths=True),
    "all states": Case("lstm", all_states=True),
    "all states, gru": Case("gru", all_states=True, lengths=True),
    "one step, one sequence": Case("lstm", example=(1, 1)),
    "tokens": Case("gru", tokens=True, lengths=True),
    "tokens, many": Case("lstm", bidirectional=True, tokens=True, lengths=True, I=30),
    "float16": Case("lstm", dtype=torch.float16, layers=2, states=True),
    "bfloat16": Case("gru", dtype=torch.bfloat16, layers=2, bidirectional=True, states=True),
    "bfloat16, loop": Case("mgu", dtype=torch.bfloat16, lengths=True),
    "float64": Case("lstm", dtype=torch.float64),
}


@pytest.mark.parametrize("layer", [*NODES, "mgu", "own_three_states"])
def test_a_layer(layer: str) -> None:
    check(Case(layer))


@pytest.mark.parametrize("layer", sorted(LAYERS.keys() - NODES.keys()))
def test_a_layer_that_is_a_loop(layer: str) -> None:
    check(Case(layer, states=True, lengths=True))


@pytest.mark.parametrize("what", FEW)
def test_what_a_layer_is_given(what: str) -> None:
    check(FEW[what])


def given_x(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return tree_leaves(layer(x))


def test_an_exported_program() -> None:
    """torch.export keeps our op; it becomes a node a direction."""
    layer = rnnfast.LSTM(3, 4, 2, bidirectional=True).eval()
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        layer, (torch.randn(5, 3, 3),), dynamic_shapes=({0: dynamic, 1: dynamic},)
    )
    assert "rnnfast.scan_forward" in program.graph_module.code
    found = torch.onnx.export(program, dynamo=True, verbose=False)
    assert "rnnfast.scan_forward" in program.graph_module.code
    assert nodes_of(found) == {"LSTM": 4}
    x = torch.randn(7, 2, 3)
    assert_close(run(found, (x, None, None, None)), given_x(layer, x), torch.float32)


def test_a_model_around_a_replaced_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 4, batch_first=True)).eval()
    rnnfast.replace(model)
    shapes = ({0: "B", 1: "T"},)
    found = torch.onnx.export(
        model, (torch.randn(3, 5, 3),), dynamo=True, verbose=False, dynamic_shapes=shapes
    )
    assert nodes_of(found) == {"GRU": 1}
    x = torch.randn(2, 7, 3)
    assert_close(run(found, (x, None, None, None)), given_x(model, x), torch.float32)


def test_small_weights_are_initializers_in_onnxs_order() -> None:
    case = Case("lstm", bidirectional=True)
    model = Model(case)
    graph = exported(model, inputs_of(model, *case.example), case).model.graph
    (node,) = (node for node in graph if node.op_type == "LSTM")
    _, w, r, b, *_ = node.inputs
    assert [value.const_value is not None for value in (w, r, b)] == [True] * 3
    i, f, g, o = model.layer.weight_ih_l0.detach().chunk(4)
    first = torch.from_numpy(w.const_value.numpy())[0]
    torch.testing.assert_close(first, torch.cat([i, o, f, g]))


def test_gates_that_are_projected_already() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = rnnfast.GRU(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            weights = [self.layer.weight_hh_l0, self.layer.bias_hh_l0]
            states = [x.new_zeros(x.shape[1], 4)]
            return rnnfast.scan("gru", x, states, weights, projected=True, reverse=True).y

    model, x = Projected().eval(), torch.randn(5, 3, 12)
    found = torch.onnx.export(
        model, (x,), dynamo=True, verbose=False, dynamic_shapes=({0: "T", 1: "B"},)
    )
    assert nodes_of(found) == {"GRU": 1}
    x = torch.randn(7, 2, 12)
    assert_close(run(found, (x, None, None, None)), given_x(model, x), torch.float32)


def without_dynamo(layer: nn.Module) -> list[Tensor]:
    """What a model by the older exporter gives for other sizes than the example's."""
    file = io.BytesIO()
    axes = {"x": {0: "T", 1: "B"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            layer, (torch.randn(5, 3, 3),), file, dynamo=False, input_names=["x"], dynamic_axes=axes
        )
    session = onnxruntime.InferenceSession(file.getvalue())
    return [torch.from_numpy(y) for y in session.run(None, {"x": OTHER.numpy()})]


OTHER = torch.randn(7, 2, 3)


@pytest.mark.parametrize("layer", [rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU, rnnfast.compat.LSTM])
def test_without_dynamo(layer: type[nn.Module]) -> None:
    """As torch.nn's layers, the layer itself being the model, too."""
    made = layer(3, 4, 2, bidirectional=True).eval()
    assert_close(without_dynamo(made), given_x(made, OTHER), torch.float32)


def test_without_dynamo_a_kernel_that_was_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # as an opaque backend, which is not built everywhere
    monkeypatch.setattr(type(registry.BACKENDS["reference"]), "composite", False)
    layer = rnnfast.LSTM(3, 4).eval()
    refused = pytest.raises(torch.onnx.OnnxExporterError, match="leave the backend to `auto`")
    with rnnfast.use_backend("reference"), refused:
        without_dynamo(layer)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_docs.test_examples_run_and_print_what_the_page_says("docs/onnx.md", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_random_models(part: int) -> None:
    @seed(part)
    @settings(
        max_examples=50,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # shrinking would export hundreds of models more
    )
    @given(case=cases)
    def agrees(case: Case) -> None:
        check(case)

    agrees()
