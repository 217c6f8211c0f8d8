"""The input's part of the gates of compiled cells on the CPU: made by the loop a few steps at a
time where each thread has sequences of its own, else by one product before; to the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rnnfast import library
from rnnfast.backends import registry
from rnnfast.cells import CELLS, CellSpec
from rnnfast.direct import run_direct
from rnnfast.problem import Options, Scan, problem_of
from rnnfast.products import multiply
from rnnfast.steps import run
from tests import own_cells

pytestmark = [
    pytest.mark.skipif(
        library.why_not() is not None, reason=f"nothing compiles here: {library.why_not()}"
    ),
    pytest.mark.skipif(
        library.why_not() is None and not multiply.is_faster(),
        reason="on this processor torch multiplies the input",
    ),
]

CELLS_HERE = [
    own_cells.lstm,
    own_cells.gru,
    own_cells.three_states,
    own_cells.heads,
    CELLS["layer_norm_lstm"],
]
# T, B, I, H: more than a block of steps; columns of several blocks; one step; a wide batch
SIZES = [(9, 33, 5, 12), (4, 35, 300, 34), (1, 40, 7, 12), (3, 150, 3, 8)]
IN_STEPS, AT_ONCE = [(1, 1), (2, 1)], (1, 2)  # of threads: for the rows, for the units


def scan_of(
    spec: CellSpec,
    sizes: tuple[int, int, int, int],
    dtype: torch.dtype,
    ends: bool,
    **options: bool,
) -> Scan:
    T, B, I, H = sizes
    make = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, dtype=torch.float64).to(dtype).mul_(0.3)

    weights = [
        random(*((spec.gates * H, I) if name == "w_ih" else spec.weight_shape(name, H)))
        for name in spec.weight_names("dense", True)
    ]
    lengths = torch.randint(0, T + 1, (B,), generator=make) if ends else None
    resets = torch.rand(T, B, generator=make) < 0.3 if ends else None
    tensors = [random(T, B, I), *(random(B, H) for _ in spec.states), *weights]
    if options["training"]:
        tensors = [t.requires_grad_() for t in tensors]
    count = len(spec.states)
    given = (tensors[0], tensors[1 : 1 + count], tensors[1 + count :])
    return Scan(spec.name, "dense", *given, lengths, resets, Options(**options))


def results(scan: Scan, split: tuple[int, int]) -> list[Tensor]:
    """Outputs and, in training, gradients, on so many threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Kernel, "split", lambda _, B: (*split, ""))
        y, final, trace = run_direct(scan, registry.select(problem_of(scan), "cpu"))
        outputs = [y, *final, *trace]
        if not scan.options.training:
            return outputs
        loss = sum((o.sin().sum() for o in outputs), torch.zeros(()))
        found = torch.autograd.grad(loss, scan.tensors, allow_unused=True)
    return [*(o.detach() for o in outputs), *(d for d in found if d is not None)]


def assert_same_bits(scan: Scan) -> None:
    expected = results(scan, AT_ONCE)
    for split in IN_STEPS:
        for a, b in zip(results(scan, split), expected, strict=True):
            assert torch.equal(a, b)


@pytest.fixture(autouse=True)
def _two_threads(poisoned: None) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("spec", CELLS_HERE, ids=lambda spec: spec.name.rpartition(":")[2])
def test_a_few_steps_at_a_time_or_at_once(
    spec: CellSpec, sizes: tuple[int, int, int, int], training: bool
) -> None:
    for ends in (False, True):
        assert_same_bits(scan_of(spec, sizes, torch.float64, ends, training=training))


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("spec", [own_cells.lstm, own_cells.gru], ids=["lstm", "gru"])
def test_reversed_and_all_states(spec: CellSpec, training: bool) -> None:
    for ends in (False, True):
        options = {"training": training, "reverse": True, "all_states": True}
        assert_same_bits(scan_of(spec, (9, 33, 5, 12), torch.float32, ends, **options))


def test_an_input_of_any_strides() -> None:
    scan = scan_of(own_cells.lstm, (9, 33, 5, 12), torch.float64, True, training=False)
    expected = results(scan, AT_ONCE)
    x = scan.input
    wide, batch_first = torch.full((9, 33, 8), torch.nan, dtype=x.dtype), x.transpose(0, 1)
    wide[..., :5] = x
    every_other = torch.stack([x, x], -1).flatten(-2)[..., ::2]
    one_step = x[:1].expand_as(x)
    for given in (wide[..., :5], batch_first.contiguous().transpose(0, 1), every_other):
        for a, b in zip(results(scan._replace(input=given), (2, 1)), expected, strict=True):
            assert torch.equal(a, b)
    scan = scan._replace(input=one_step)
    assert_same_bits(scan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_storage(dtype: torch.dtype) -> None:
    assert_same_bits(scan_of(own_cells.gru, (9, 33, 5, 12), dtype, True, training=True))


def test_threads_that_are_not_to_be_had() -> None:
    """Of a call that was planned for more of them than there are: one does it all."""
    scan = scan_of(own_cells.lstm, (5, 100, 5, 12), torch.float64, True, training=False)
    expected = results(scan, AT_ONCE)
    torch.set_num_threads(1)
    for a, b in zip(results(scan, (2, 1)), expected, strict=True):
        assert torch.equal(a, b)
