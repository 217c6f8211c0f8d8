"""`rnnfast.replace(model)`: what it swaps, what it shares, what it leaves and says why."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.contract.helpers import KINDS, results

pytestmark = pytest.mark.beyond_torch("replace puts rnnfast's layers in the place of torch.nn's")

WIDTH, H = 4, 5


class Tagger(nn.Module):
    """A model with recurrent layers in every place where a module can stand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, WIDTH)
        self.encoder = nn.LSTM(WIDTH, H, 2, bidirectional=True, batch_first=True)
        self.blocks = nn.Sequential(
            OrderedDict(first=nn.Linear(2 * H, WIDTH), second=nn.GRU(WIDTH, H))
        )
        self.branches = nn.ModuleList([nn.RNN(H, H), nn.ModuleDict({"relu": relu_rnn()})])
        self.head = nn.Linear(H, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.encoder(self.embed(tokens))
        x, _ = self.blocks(x)
        x, _ = self.branches[0](x)
        x, _ = self.branches[1]["relu"](x)
        out: Tensor = self.head(x)
        return out


def relu_rnn() -> nn.RNN:
    return nn.RNN(H, H, nonlinearity="relu")


PLACES = {
    "encoder": ("torch.nn.LSTM", "rnnfast.compat.LSTM", "rnnfast.LSTM"),
    "blocks.second": ("torch.nn.GRU", "rnnfast.compat.GRU", "rnnfast.GRU"),
    "branches.0": ("torch.nn.RNN", "rnnfast.compat.RNN", "rnnfast.RNN"),
    "branches.1.relu": ("torch.nn.RNN", "rnnfast.compat.RNN", "rnnfast.RNN"),
}


@pytest.fixture
def replace() -> Any:
    import rnnfast

    return rnnfast.replace


@pytest.mark.parametrize("fullgraph", [False, True])
def test_every_layer_is_swapped_in_place(replace: Any, fullgraph: bool) -> None:
    import rnnfast

    model = Tagger()
    tokens = torch.randint(0, 9, (3, 6))
    want, names = model(tokens), list(model.state_dict())
    report = replace(model, fullgraph=fullgraph)
    assert report.model is model
    assert report.left == []
    assert report.swapped == [
        (name, old, full if fullgraph else compat) for name, (old, compat, full) in PLACES.items()
    ]
    for name, (old, _, _) in PLACES.items():
        short = old.rpartition(".")[2]
        home = rnnfast if fullgraph else rnnfast.compat
        assert type(model.get_submodule(name)) is getattr(home, short)
    assert type(model.head) is nn.Linear
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(tokens), want)


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_a_layer_was_it_stays(replace: Any, kind: str, fullgraph: bool) -> None:
    spec = KINDS[kind]
    old = getattr(nn, spec.cls)(
        WIDTH, H, 2, bias=False, batch_first=True, dropout=0.5, bidirectional=True,
        dtype=torch.float64, **spec.kwargs,
    )  # fmt: skip
    old.weight_hh_l1.requires_grad_(False)
    old.note = "kept"
    old.register_buffer("scale", torch.ones(2))
    parameters, represented = dict(old.named_parameters()), repr(old)
    new = replace(nn.Sequential(old), fullgraph=fullgraph).model[0]
    assert type(new) is not type(old)
    assert new.mode == old.mode
    assert repr(new) == represented
    got = dict(new.named_parameters())
    assert list(got) == list(parameters)
    assert all(got[name] is weight for name, weight in parameters.items())
    assert new._flat_weights_names == list(parameters)
    assert all(a is b for a, b in zip(new._flat_weights, parameters.values(), strict=True))
    assert not new.weight_hh_l1.requires_grad
    assert new.weight_hh_l0.requires_grad
    assert new.note == "kept"
    assert torch.equal(new.scale, torch.ones(2))
    x = torch.randn(3, 6, WIDTH, dtype=torch.float64)
    for layer in (old, new):
        layer.eval()
    torch.testing.assert_close(results(*new(x)), results(*old(x)))


@pytest.mark.parametrize("training", [False, True])
def test_the_training_mode_stays(replace: Any, training: bool) -> None:
    model = nn.Sequential(nn.LSTM(WIDTH, H), nn.ModuleList([nn.GRU(WIDTH, H)])).train(training)
    model[1][0].train(not training)
    replace(model)
    assert model[0].training is training
    assert model[1][0].training is not training


def test_hooks_stay_and_can_still_be_removed(replace: Any) -> None:
    model, calls = nn.Sequential(nn.GRU(WIDTH, H)), []
    handles = [
        model[0].register_forward_pre_hook(lambda *_: calls.append("pre")),
        model[0].register_forward_hook(lambda *_: calls.append("forward")),
        model[0].register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    replace(model)
    x = torch.randn(3, 2, WIDTH, requires_grad=True)
    model(x)[0].sum().backward()
    assert calls == ["pre", "forward", "backward"]
    for handle in handles:
        handle.remove()
    model(x)[0].sum().backward()
    assert len(calls) == 3, "a hook's handle from before the swap no longer removes it"


def test_an_optimizer_made_before_goes_on(replace: Any) -> None:
    model, reference = Tagger(), Tagger()
    reference.load_state_dict(model.state_dict())
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.05) for m in (model, reference)]
    replace(model)
    tokens, losses = torch.randint(0, 9, (3, 6)), []
    for _ in range(4):
        row = []
        for m, optimizer in zip((model, reference), optimizers, strict=True):
            optimizer.zero_grad()
            loss = m(tokens).square().mean()
            loss.backward()
            optimizer.step()
            row.append(loss.item())
        losses.append(row)
    assert losses[-1][0] < losses[0][0]
    assert [ours for ours, _ in losses] == pytest.approx([theirs for _, theirs in losses], rel=1e-4)


def test_a_shared_layer_becomes_one_new_layer(replace: Any) -> None:
    shared = nn.GRU(H, H)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.GRU(H, H)})
    parent = nn.ModuleList([model["b"], model])
    report = replace(parent)
    assert parent[1]["a"] is parent[0][0] is parent[1]["b"][0]
    assert parent[1]["a"] is not shared
    assert parent[1]["a"] is not parent[1]["c"]
    assert len(list(parent.parameters())) == 8
    places, named = {"0.0", "1.a", "1.b.0"}, {name for name, _, _ in report.swapped}
    assert "1.c" in named
    assert named & places
    assert named <= places | {"1.c"}


def test_tied_weights_stay_tied(replace: Any) -> None:
    model = nn.ModuleList([nn.LSTM(WIDTH, H), nn.LSTM(WIDTH, H)])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    replace(model)
    assert model[1].weight_hh_l0 is model[0].weight_hh_l0
    x = torch.randn(3, 2, WIDTH)
    before = model[0](x)[0].detach()
    with torch.no_grad():
        model[1].weight_hh_l0.mul_(2)
    assert not torch.equal(model[0](x)[0], before)


def test_a_root_that_is_a_layer_comes_back_new(replace: Any) -> None:
    import rnnfast

    root = nn.LSTM(WIDTH, H)
    report = replace(root)
    assert type(report.model) is rnnfast.compat.LSTM
    assert report.model is not root
    assert report.swapped == [("", "torch.nn.LSTM", "rnnfast.compat.LSTM")]
    assert report.model.weight_hh_l0 is root.weight_hh_l0


class Subclass(nn.LSTM):
    """What a user made of nn.LSTM: may override anything."""


def left_alone() -> dict[str, nn.Module]:
    parametrised, weight_normed = nn.LSTM(WIDTH, H), nn.GRU(WIDTH, H)
    parametrizations.weight_norm(parametrised, "weight_hh_l0")
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(weight_normed, "weight_hh_l0")
    spectral = nn.utils.spectral_norm(nn.RNN(WIDTH, H), "weight_hh_l0")
    return {
        "subclass": Subclass(WIDTH, H),
        "parametrised": parametrised,
        "weight_normed": weight_normed,
        "spectral": spectral,
    }


@pytest.mark.parametrize("name", ["subclass", "parametrised", "weight_normed", "spectral"])
def test_what_is_not_plain_is_left_with_a_reason(replace: Any, name: str) -> None:
    layer = left_alone()[name]
    model = nn.Sequential(nn.GRU(WIDTH, WIDTH), nn.Sequential(OrderedDict({name: layer})))
    report = replace(model)
    assert model[1][0] is layer
    assert [place for place, _, _ in report.swapped] == ["0"]
    ((place, reason),) = report.left
    assert place == f"1.{name}"
    assert len(reason) > 10
    assert name in str(report)
    assert "rnnfast.compat.GRU" in str(report)


def patched() -> dict[str, nn.Module]:
    layers = {name: nn.LSTM(WIDTH, H) for name in ("lambda", "method", "flatten")}
    plain = layers["lambda"].forward
    layers["lambda"].forward = lambda *args: plain(*args)
    layers["method"].forward = layers["method"].forward  # a bound method of the instance
    layers["flatten"].flatten_parameters = lambda: None
    return layers


@pytest.mark.parametrize("name", ["lambda", "method", "flatten"])
def test_an_instance_whose_methods_were_replaced_is_left(replace: Any, name: str) -> None:
    layer = patched()[name]
    model = nn.Sequential(layer)
    ((_, reason),) = replace(model).left
    assert model[0] is layer
    assert "was replaced on the instance" in reason
    assert ("flatten_parameters" if name == "flatten" else "forward") in reason


def test_what_was_compiled_of_the_old_layer_is_not_taken_over(replace: Any) -> None:
    import rnnfast

    model = nn.Sequential(nn.GRU(WIDTH, H))
    calls = []

    def backend(graph: Any, _: Any) -> Any:
        calls.append(graph)
        return graph

    model[0].compile(backend=backend)
    assert model[0]._compiled_call_impl is not None
    replace(model)
    assert model[0]._compiled_call_impl is None
    x = torch.randn(3, 2, WIDTH)
    with rnnfast.use_backend("reference"):
        model(x)
    assert calls == []


def test_hooks_that_torch_binds_to_the_layer_are_bound_anew(replace: Any) -> None:
    import gc

    model, seen = nn.Sequential(nn.LSTM(WIDTH, H)), []
    handles = [
        model[0].register_load_state_dict_pre_hook(lambda module, *_: seen.append(module)),
        model[0].register_load_state_dict_post_hook(lambda module, _: seen.append(module)),
        model[0].register_state_dict_pre_hook(lambda module, *_: seen.append(module)),
    ]
    state = model.state_dict()
    seen.clear()
    replace(model)
    gc.collect()  # of the old layer
    model.load_state_dict(state)
    model.state_dict()
    assert seen == [model[0]] * 3
    for handle in handles:
        handle.remove()
    model.load_state_dict(state)
    assert len(seen) == 3


def test_parameters_can_be_swapped_while_the_old_layer_lives(replace: Any) -> None:
    old = nn.LSTM(WIDTH, H)
    model = nn.Sequential(old)
    replace(model)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert model[0](torch.randn(3, 2, WIDTH).double())[0].dtype == torch.float64
    assert old(torch.randn(3, 2, WIDTH).double())[0].dtype == torch.float64


def test_buffers_of_the_new_layer_are_its_own_affair(replace: Any) -> None:
    old = nn.GRU(WIDTH, H)
    new = replace(nn.Sequential(old)).model[0]
    new.register_buffer("scratch", torch.zeros(1), persistent=False)
    assert "scratch" not in new.state_dict()
    old.register_buffer("scratch", torch.zeros(1))
    assert "scratch" in old.state_dict()


def test_a_root_that_is_left_is_the_model(replace: Any) -> None:
    root = Subclass(WIDTH, H)
    report = replace(root)
    assert report.model is root
    assert report.swapped == []
    assert [place for place, _ in report.left] == [""]


def test_a_quantized_layer_is_left_with_a_reason(replace: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.nn.quantized.dynamic import LSTM as QuantizedLSTM

        layer = QuantizedLSTM(WIDTH, H)
    model = nn.Sequential(layer)
    report = replace(model)
    assert model[0] is layer
    assert report.swapped == []
    assert [place for place, _ in report.left] == ["0"]


def test_a_second_time_there_is_nothing_to_swap(replace: Any) -> None:
    model = Tagger()
    replace(model)
    encoder = model.encoder
    report = replace(model)
    assert report.swapped == []
    assert report.left == []
    assert model.encoder is encoder


def test_a_model_without_layers_is_left_as_it_is(replace: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    report = replace(model)
    assert (report.model, report.swapped, report.left) == (model, [], [])
    assert str(report)


def test_a_replaced_model_is_copied_saved_and_moved(replace: Any) -> None:
    import pickle

    model = Tagger()
    tokens = torch.randint(0, 9, (3, 6))
    replace(model)
    want = model(tokens)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.encoder) is type(model.encoder)
        torch.testing.assert_close(other(tokens), want)
        assert other.encoder.weight_hh_l0 is not model.encoder.weight_hh_l0
        assert all(
            a is b
            for a, b in zip(other.encoder._flat_weights, other.encoder.parameters(), strict=True)
        )
    torch.testing.assert_close(model.double()(tokens).float(), want)
    fresh = Tagger()
    fresh.load_state_dict(model.float().state_dict(), strict=True)
    torch.testing.assert_close(fresh(tokens), want)


def test_the_layer_left_behind_is_not_changed(replace: Any) -> None:
    old = nn.LSTM(WIDTH, H)
    model = nn.Sequential(old)
    replace(model)
    model[0].dropout = 0.7
    model[0].weight_hh_l0 = nn.Parameter(torch.zeros(4 * H, H))
    assert old.dropout == 0.0
    assert float(old.weight_hh_l0.detach().abs().max()) > 0
    assert old._flat_weights[1] is old.weight_hh_l0


@pytest.mark.parametrize("kind", KINDS)
def test_a_fullgraph_layer_compiles_in_one_graph(replace: Any, kind: str) -> None:
    spec = KINDS[kind]
    model = nn.Sequential(getattr(nn, spec.cls)(WIDTH, H, 2, bidirectional=True, **spec.kwargs))
    x = torch.randn(3, 2, WIDTH)
    want = results(*model(x))
    replace(model, fullgraph=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(results(*compiled(x)), want)
