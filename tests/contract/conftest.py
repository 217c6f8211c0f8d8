"""The drop-in contract is torch's, and torch.nn itself passes these tests:

    pytest tests/contract --contract-impl torch

What rnnfast promises beyond torch.nn carries the marker `beyond_torch("why")` and is skipped there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType

import pytest
from torch import nn

from tests.contract.helpers import Maker

# also of the layers as cells of one's own; others are about constructors that are torch.nn's
OWN_TOO = ("test_shapes", "test_parity", "test_packed", "test_forward_errors")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--contract-impl",
        dest="contract_impl",
        choices=("rnnfast", "torch", "own"),
        default="rnnfast",
        help="run the drop-in contract on rnnfast (default), on torch.nn, whose contract it is, or "
        "on the same layers stated as cells of one's own",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "beyond_torch(reason): promised by rnnfast, not kept by torch.nn"
    )


def _impl(config: pytest.Config) -> str:
    found: str = config.getoption("contract_impl", "rnnfast")
    return found


def _on_torch(config: pytest.Config) -> bool:
    return _impl(config) == "torch"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        own = _impl(config) == "own" or "[own" in item.nodeid
        if own and ("proj" in item.nodeid or "pinned" in item.nodeid):
            item.add_marker(pytest.mark.skip(reason="a cell of one's own has no proj_size"))
    if not _on_torch(config):
        return
    for item in items:
        marker = item.get_closest_marker("beyond_torch")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"beyond torch.nn: {marker.args[0]}"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    on_torch = _on_torch(metafunc.config)
    if "family" in metafunc.fixturenames:
        families = {"torch": ["torch"], "own": ["own"]}.get(_impl(metafunc.config))
        module = metafunc.module.__name__.rpartition(".")[2]
        own = ["own"] if module in OWN_TOO else []
        metafunc.parametrize("family", families or ["layers", "compat", *own])
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize(
            "backend", ["torch.nn"] if on_torch else ["auto", "reference"], indirect=True
        )


def _namespace(family: str) -> ModuleType:
    if family == "torch":
        return nn
    if family == "own":
        from tests.contract import own

        return own
    import rnnfast
    import rnnfast.compat

    return rnnfast.compat if family == "compat" else rnnfast


@pytest.fixture
def make(family: str) -> Maker:
    """`make("LSTM", 4, 5)` builds the layer under test; runs for rnnfast.*, rnnfast.compat.* and,
    in OWN_TOO, the same layers as cells of one's own."""
    return Maker(_namespace(family))


@pytest.fixture
def make_layer(request: pytest.FixtureRequest) -> Maker:
    """As `make`, for rnnfast.* only: where rnnfast.compat.* could not differ."""
    impl = _impl(request.config)
    return Maker(_namespace("layers" if impl == "rnnfast" else impl))


@pytest.fixture
def make_cell(make_layer: Maker) -> Maker:
    """`make_cell("GRUCell", 4, 5)` builds the cell under test."""
    return make_layer


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with the backend that `auto` takes and once with the scratch loop."""
    name: str = request.param
    scope: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if name != "torch.nn":
        import rnnfast

        scope = rnnfast.use_backend(name)
    with scope:
        yield name
