"""Parameters and state: names, order, both ways with torch.nn, true through all that moves them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tests.contract.helpers import KINDS, LAYER_CLASSES, Maker, run, twins
from tests.oracle import assert_all_close_to_oracle

WIDTH, H = 4, 5
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
    {"num_layers": 3, "bias": False, "bidirectional": True},
]


def pair(make: Maker, kind: str, **kwargs: Any) -> tuple[Any, Any]:
    spec = KINDS[kind]
    given = spec.kwargs | kwargs
    return make(spec.cls, WIDTH, H, **given), getattr(nn, spec.cls)(WIDTH, H, **given)


def shapes(layer: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(weight.shape)) for name, weight in layer.state_dict().items()]


def flat_is_true(layer: Any) -> bool:
    """`_flat_weights` holds the very parameters, in the order of their names."""
    names = [name for name, _ in layer.named_parameters()]
    return layer._flat_weights_names == names and all(
        flat is getattr(layer, name)
        for flat, name in zip(layer._flat_weights, layer._flat_weights_names, strict=True)
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_goes_both_ways(make: Maker, kind: str, layout: dict[str, Any]) -> None:
    ours, theirs = pair(make, kind, **layout)
    assert shapes(ours) == shapes(theirs)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    x = torch.randn(3, 2, WIDTH)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(x))
    _, other = pair(make, kind, **layout)
    other.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(other(x), theirs(x), rtol=0, atol=0)


def test_the_names_are_pinned(make: Maker) -> None:
    layer = make("LSTM", WIDTH, H, 2, bidirectional=True, proj_size=3)
    names = [
        f"{stem}_l{k}{suffix}"
        for k in range(2)
        for suffix in ("", "_reverse")
        for stem in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    ]
    assert list(layer.state_dict()) == names
    assert layer.weight_ih_l0.shape == (20, 4)
    assert layer.weight_ih_l1.shape == (20, 6)
    assert layer.weight_hh_l0.shape == (20, 3)
    assert layer.weight_hr_l1_reverse.shape == (3, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_state_dict_is_refused(make: Maker, kind: str) -> None:
    ours, theirs = pair(make, kind)
    state = theirs.state_dict()
    extra, missing = state | {"more": torch.zeros(1)}, dict(list(state.items())[1:])
    narrow = state | {"weight_ih_l0": torch.zeros(1, 1)}
    for wrong, word in ((extra, "Unexpected"), (missing, "Missing"), (narrow, "size mismatch")):
        with pytest.raises(RuntimeError, match=word):
            ours.load_state_dict(wrong, strict=True)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_lists_of_weights_are_torchs(make: Maker, kind: str, layout: dict[str, Any]) -> None:
    ours, theirs = pair(make, kind, **layout)
    assert ours._flat_weights_names == theirs._flat_weights_names
    names = {id(weight): name for name, weight in ours.named_parameters()}
    their_names = {id(weight): name for name, weight in theirs.named_parameters()}
    assert [[names[id(w)] for w in row] for row in ours.all_weights] == [
        [their_names[id(w)] for w in row] for row in theirs.all_weights
    ]
    assert flat_is_true(ours)
    assert ours.flatten_parameters() is None
    assert flat_is_true(ours)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_torchs_weights(make: Maker, kind: str, layout: dict[str, Any]) -> None:
    spec = KINDS[kind]
    made = []
    for cls in (make.cls(spec.cls), getattr(nn, spec.cls)):
        torch.manual_seed(5)
        layer = cls(WIDTH, H, **spec.kwargs, **layout)
        first, next_number = copy.deepcopy(layer.state_dict()), torch.rand(1)
        layer.reset_parameters()
        made.append((first, next_number, layer.state_dict()))
    (ours, our_next, ours_again), (theirs, their_next, theirs_again) = made
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight)
        assert torch.equal(ours_again[name], theirs_again[name])
        assert float(weight.abs().max()) <= H**-0.5
    assert torch.equal(our_next, their_next)


def saved_and_loaded(layer: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


MOVES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "save_and_load": saved_and_loaded,
    "to_and_back": lambda layer: layer.to(torch.float16).to(torch.float64),
    "double": lambda layer: layer.float().double(),
    "apply_fn": lambda layer: layer._apply(lambda weight: weight.clone()),
    "share_memory": lambda layer: layer.share_memory(),
    "requires_grad": lambda layer: layer.requires_grad_(False).requires_grad_(True),
    "in_a_module": lambda layer: nn.Sequential(nn.ModuleList([layer])).to("cpu")[0][0],
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_stay_true_through(make: Maker, kind: str, move: str) -> None:
    _, theirs = twins(make, kind, WIDTH, H, 2, bidirectional=True, dtype=torch.float64)
    for weight in theirs.parameters():
        weight.data = weight.data.half().double()  # so that no move loses a digit
    spec = KINDS[kind]
    ours = make(spec.cls, WIDTH, H, 2, bidirectional=True, dtype=torch.float64, **spec.kwargs)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    run(ours, x)  # whatever a layer may keep, it keeps from here on
    moved = MOVES[move](ours)
    assert type(moved) is type(ours)
    assert repr(moved) == repr(ours)
    assert flat_is_true(moved)
    assert_all_close_to_oracle(run(moved, x), run(theirs, x))
    with torch.no_grad():
        for layer in (moved, theirs):
            layer.weight_hh_l1.mul_(0.5)
    assert_all_close_to_oracle(run(moved, x), run(theirs, x))


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "save_and_load"])
@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_a_copy_is_independent(make: Maker, cls: str, copier: str) -> None:
    layer = make(cls, WIDTH, H)
    x = torch.randn(3, 2, WIDTH)
    before = layer(x)[0].detach()
    copied = MOVES[copier](layer)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.zero_()
    torch.testing.assert_close(layer(x)[0].detach(), before, rtol=0, atol=0)
    assert not torch.equal(copied(x)[0], before)


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_an_assigned_parameter_is_used(make: Maker, cls: str, used_before: bool) -> None:
    ours, theirs = twins(make, cls.lower() if cls != "RNN" else "rnn_tanh", WIDTH, H, 2)
    x = torch.randn(3, 2, WIDTH)
    if used_before:
        ours(x)
    for name in ("weight_hh_l1", "bias_ih_l0"):
        new = Parameter(torch.randn_like(getattr(ours, name)))
        setattr(ours, name, new)
        setattr(theirs, name, Parameter(new.detach().clone()))
        assert ours._flat_weights[ours._flat_weights_names.index(name)] is new
        assert dict(ours.named_parameters())[name] is new
    assert flat_is_true(ours)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_a_deleted_weight_can_be_put_back_as_a_tensor(make: Maker, cls: str) -> None:
    """What weight-drop layers do: the parameter moves away, a masked tensor takes its place."""
    ours, theirs = twins(make, cls.lower() if cls != "RNN" else "rnn_tanh", WIDTH, H)
    x, mask = torch.randn(3, 2, WIDTH), torch.rand_like(ours.weight_hh_l0) > 0.5
    gradients = []
    for layer in (ours, theirs):
        layer(x)
        raw = layer.weight_hh_l0
        del layer.weight_hh_l0
        assert not hasattr(layer, "weight_hh_l0")
        layer.register_parameter("raw", Parameter(raw.detach().clone()))
        for scale in (1.0, 2.0):  # anew at every step, as such layers do
            layer.weight_hh_l0 = layer.raw * mask * scale
            output, _ = layer(x)
        gradients.append((output, *torch.autograd.grad(output.square().sum(), [layer.raw])))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert bool((gradients[0][1][~mask] == 0).all())


@pytest.mark.parametrize("cls", LAYER_CLASSES)
def test_rebound_data_is_used(make: Maker, cls: str) -> None:
    layer = make(cls, WIDTH, H)
    x = torch.randn(3, 2, WIDTH)
    layer(x)
    vector = nn.utils.parameters_to_vector(layer.parameters()).detach()
    nn.utils.vector_to_parameters(0.5 * vector, layer.parameters())
    other = getattr(nn, cls)(WIDTH, H)
    nn.utils.vector_to_parameters(0.5 * vector, other.parameters())
    torch.testing.assert_close(layer(x), other(x))


@pytest.mark.parametrize("kind", KINDS)
def test_meta_then_to_empty_then_loaded(make: Maker, kind: str) -> None:
    spec = KINDS[kind]
    with torch.device("meta"):
        layer = make(spec.cls, WIDTH, H, 2, **spec.kwargs)
    assert {weight.device.type for weight in layer.parameters()} == {"meta"}
    theirs = getattr(nn, spec.cls)(WIDTH, H, 2, **spec.kwargs)
    x = torch.randn(3, 2, WIDTH)
    assigned = copy.deepcopy(layer)
    layer.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    assigned.load_state_dict(theirs.state_dict(), assign=True)
    for loaded in (layer, assigned):
        assert flat_is_true(loaded)
        torch.testing.assert_close(loaded(x), theirs(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_meta_layer_tells_its_shapes(make: Maker, kind: str) -> None:
    spec = KINDS[kind]
    layer = make(spec.cls, WIDTH, H, 2, device="meta", bidirectional=True, **spec.kwargs)
    output, _ = layer(torch.empty(3, 2, WIDTH, device="meta"))
    assert output.device.type == "meta"
    assert output.shape == (3, 2, 2 * (spec.kwargs.get("proj_size") or H))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_torchs_that_is_given_this_class(make: Maker, kind: str) -> None:
    """By ``__class__ =``, or by an unpickler that maps names: no ``__init__`` runs."""
    spec = KINDS[kind]
    theirs = getattr(nn, spec.cls)(WIDTH, H, 2, **spec.kwargs)
    x = torch.randn(3, 2, WIDTH)
    expected = theirs(x)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "torch.nn.modules.rnn" and name == spec.cls:
                return make.cls(name)
            return super().find_class(module, name)

    unpickled = Unpickler(io.BytesIO(pickle.dumps(theirs))).load()
    theirs.__class__ = make.cls(spec.cls)
    for layer in (unpickled, theirs):
        assert type(layer) is make.cls(spec.cls)
        torch.testing.assert_close(layer(x), expected)
        assert repr(layer)
        torch.testing.assert_close(copy.deepcopy(layer)(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_skip_init(make: Maker, kind: str) -> None:
    spec = KINDS[kind]
    layer = nn.utils.skip_init(make.cls(spec.cls), WIDTH, H, **spec.kwargs)
    other = make(spec.cls, WIDTH, H, **spec.kwargs)
    layer.load_state_dict(other.state_dict())
    x = torch.randn(3, 2, WIDTH)
    torch.testing.assert_close(layer(x), other(x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_replica_for_data_parallel_has_its_own_lists(make: Maker, kind: str) -> None:
    layer, theirs = twins(make, kind, WIDTH, H)
    replica = layer._replicate_for_data_parallel()
    assert replica._flat_weights is not layer._flat_weights
    for name, weight in layer.named_parameters():
        setattr(replica, name, weight)
    torch.testing.assert_close(replica(torch.ones(3, 2, WIDTH)), theirs(torch.ones(3, 2, WIDTH)))
    assert flat_is_true(layer)


def test_weights_and_states_of_a_model_keep_their_prefixed_names(make: Maker) -> None:
    def model(build: Callable[..., Any]) -> nn.Module:
        return nn.ModuleDict({"encoder": build("GRU", WIDTH, H), "head": nn.Linear(H, 2)})

    ours = model(make)
    theirs = model(lambda cls, *sizes: getattr(nn, cls)(*sizes))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    hooked: list[Tensor] = []
    ours["encoder"].register_forward_hook(lambda _module, _x, out: hooked.append(out[0]))
    ours["encoder"](torch.zeros(3, 2, WIDTH))
    assert len(hooked) == 1
    assert hooked[0].shape == (3, 2, H)
