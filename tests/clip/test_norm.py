"""clip_grad_norm_ and get_total_norm on the CPU: torch's results, and where they are better."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast.clip import kernels

from ..oracle import error_bound
from .lists import FLOATS, INF, NAN, copies, exact_norm, mixed, parameters, strided

pytestmark = pytest.mark.skipif(
    kernels.of_device("cpu") is None, reason="the extension is not built: torch's own code runs"
)
NORMS = (2.0, 1.0, INF, 3.0, 0.5, 2.5)
names = {"ids": lambda value: str(value).removeprefix("torch.")}


def check_against_torch(grads: list[Tensor | None], max_norm: float, p: float) -> None:
    """The norm and every gradient, within the bound that torch's own error sets."""
    ours, theirs = parameters(copies(grads)), parameters(copies(grads))
    norm = rnnfast.clip_grad_norm_(ours, max_norm, p)
    expected = nn.utils.clip_grad_norm_(theirs, max_norm, p)
    assert norm.dtype == expected.dtype
    assert norm.shape == expected.shape
    assert not norm.requires_grad
    truth = torch.tensor(exact_norm(grads, p), dtype=torch.float64)
    # a float64 norm of float32 gradients is as good as sums in float32 are
    kinds = {g.dtype for g in grads if g is not None}
    judged = norm.dtype if len(kinds) == 1 else torch.float32
    assert abs(norm.double() - truth) <= error_bound(truth, expected, judged)
    factor = min(1.0, max_norm / (float(truth) + 1e-6))
    for own, torchs, grad in zip(ours, theirs, grads, strict=True):
        if grad is None:
            assert own.grad is None
            continue
        exact = grad.double() * factor
        assert own.grad.stride() == torchs.grad.stride()
        if exact.numel():
            off = (own.grad.double() - exact).abs().max()
            kind = grad.dtype if len(kinds) == 1 or grad.dtype != torch.float64 else torch.float32
            assert off <= error_bound(exact, torchs.grad, kind)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [None, *FLOATS], **names)
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clips_as_torch_does(dtype: torch.dtype | None, p: float, max_norm: float) -> None:
    grads = [g for g in mixed(dtype) if p != INF or g is None or g.numel()]
    check_against_torch(grads, max_norm, p)


@pytest.mark.parametrize("dtypes", [(a, b) for a in FLOATS for b in FLOATS], **names)
def test_dtype_of_the_norm(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    grads = [torch.ones(3, dtype=d) for d in dtypes]
    expected = nn.utils.get_total_norm(grads)
    norm = rnnfast.get_total_norm(grads)
    assert norm.dtype == expected.dtype
    assert float(norm) == pytest.approx(6**0.5, rel=4 * torch.finfo(norm.dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS, **names)
@pytest.mark.parametrize("size", [1, 7, 16, 127, 129, 16383, 16385, 50_001])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_every_element_is_seen_once(dtype: torch.dtype, size: int, offset: int) -> None:
    memory = torch.full((size + offset + 8,), 2.0, dtype=dtype)
    grad = memory[offset : offset + size]
    parameter = nn.Parameter(torch.zeros(size, dtype=dtype))
    parameter.grad = grad
    norm = rnnfast.clip_grad_norm_(parameter, 0.25, 1)
    expected = torch.tensor(2.0 * size, dtype=torch.float64).to(dtype)
    assert torch.equal(norm, expected)
    scaled = (torch.tensor(2.0) * (0.25 / (2.0 * size + 1e-6))).to(dtype)
    torch.testing.assert_close(grad, scaled.expand(size), rtol=0.01, atol=0)
    assert (grad == grad[0]).all()
    assert (memory[:offset] == 2).all()
    assert (memory[offset + size :] == 2).all()


def test_what_lies_between_strided_elements_stays() -> None:
    grad = strided(torch.ones(5, 7))
    parameter = parameters([grad])[0]
    rnnfast.clip_grad_norm_(parameter, 1.0)
    assert grad._base is not None
    assert grad._base[..., ::2].isnan().all()
    torch.testing.assert_close(grad, torch.full((5, 7), 35**-0.5))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_from_any_number_of_threads(threads: int) -> None:
    grads = [
        torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (900_000, 5, 70_000)
    ]

    def clipped() -> list[Tensor]:
        ours = parameters(copies(grads))
        return [rnnfast.clip_grad_norm_(ours, 1.0), *(p.grad for p in ours)]

    alone = clipped()
    torch.set_num_threads(threads)
    try:
        again = clipped()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], **names)
@pytest.mark.parametrize("factor", [0.3, 2**-9, 1e-6, 0.0, -0.7])
def test_every_16_bit_number_is_rounded_to_nearest(dtype: torch.dtype, factor: float) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    grad = every.clone()
    rnnfast.clip_grads_with_norm_(
        parameters([grad]), factor * (8 + 1e-6), torch.tensor(8.0).double()
    )
    expected = (every.float() * torch.tensor(factor)).to(dtype)
    assert torch.equal(grad.isnan(), expected.isnan())
    known = ~expected.isnan()
    assert torch.equal(grad[known].view(torch.int16), expected[known].view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], **names)
def test_every_16_bit_number_is_read(dtype: torch.dtype) -> None:
    every = torch.arange(0, 2**15, dtype=torch.int16).view(dtype)
    every = every[every.isfinite()]
    for part in every.split(97):
        found = rnnfast.get_total_norm([part, torch.zeros(1).double()], INF)
        assert float(found) == float(part.double().max())


# --- beyond the range ----------------------------------------------------------------------------

LARGE = (
    (torch.float32, 1e30, 2.0),
    (torch.bfloat16, 1e30, 2.0),
    (torch.float64, 1e300, 2.0),
    (torch.float64, 1e160, 3.0),
    (torch.float64, 1.2e154, 2.0),
    (torch.float32, 3e37, 1.0),
)


@pytest.mark.parametrize(("dtype", "size", "p"), LARGE)
def test_finite_gradients_have_a_finite_norm(dtype: torch.dtype, size: float, p: float) -> None:
    grads = [torch.ones(40), torch.full((9,), size, dtype=dtype), torch.full((500,), 1e-3)]
    ours = parameters(copies(grads))
    norm = rnnfast.get_total_norm([p.grad for p in ours], p)
    truth = exact_norm(grads, p)
    assert float(norm) == pytest.approx(truth, rel=1e-6 if dtype != torch.bfloat16 else 1e-2)
    assert torch.equal(rnnfast.clip_grad_norm_(ours, truth / 2, p), norm)
    torch.testing.assert_close(ours[1].grad, grads[1] / 2, rtol=1e-2, atol=0)
    torch.testing.assert_close(ours[0].grad, grads[0] / 2)
    assert not nn.utils.get_total_norm(grads, p).isfinite() or p == 1.0


def test_many_chunks_that_overflow_only_together() -> None:
    grads = [torch.full((40_000,), 1e152, dtype=torch.float64) for _ in range(6)]
    assert float(rnnfast.get_total_norm(grads)) == pytest.approx(1e152 * 240_000**0.5, rel=1e-12)


def test_norm_beyond_the_dtype_is_infinite_and_the_gradients_are_right() -> None:
    grads = [torch.full((100,), 60_000, dtype=torch.float16)]
    ours = parameters(copies(grads))
    assert rnnfast.clip_grad_norm_(ours, 300_000.0).isinf()
    torch.testing.assert_close(ours[0].grad, grads[0] / 2)


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", FLOATS, **names)
def test_not_finite_as_torch(dtype: torch.dtype, p: float, bad: float) -> None:
    grads = [torch.randn(50), torch.randn(700).to(dtype)]
    grads[1][300] = bad
    ours, theirs = parameters(copies(grads)), parameters(copies(grads))
    norm = rnnfast.clip_grad_norm_(ours, 1.0, p)
    expected = nn.utils.clip_grad_norm_(theirs, 1.0, p)
    assert torch.equal(norm.isnan(), expected.isnan())
    assert torch.equal(norm.isinf(), expected.isinf())
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad.isnan(), b.grad.isnan())
        assert (a.grad.nan_to_num() == b.grad.nan_to_num()).all()


@pytest.mark.parametrize("max_norm", [INF, -1.0, 0.0, NAN])
def test_strange_bounds_as_torch(max_norm: float) -> None:
    for value in (1.0, INF, 0.0):
        ours, theirs = parameters([torch.full((4,), value)]), parameters([torch.full((4,), value)])
        norm = rnnfast.clip_grad_norm_(ours, max_norm)
        assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs, max_norm))
        torch.testing.assert_close(ours[0].grad, theirs[0].grad, equal_nan=True)


# --- lists ---------------------------------------------------------------------------------------


def test_a_parameter_listed_twice_counts_and_is_scaled_twice() -> None:
    grads = [torch.randn(300), torch.randn(20)]
    ours, theirs = parameters(copies(grads)), parameters(copies(grads))
    norm = rnnfast.clip_grad_norm_([*ours, ours[0]], 1.0)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_([*theirs, theirs[0]], 1.0))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_gradients_that_share_a_part_are_scaled_in_order() -> None:
    def views() -> list[Tensor]:
        memory = torch.arange(1.0, 200_001.0) / 1e5
        return [memory[:150_000], memory[50_000:], memory.view(2, -1)[:, :1000]]

    ours, theirs = views(), views()
    torch.set_num_threads(2)
    try:
        norm = rnnfast.clip_grad_norm_(parameters(ours), 1.0)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(parameters(theirs), 1.0))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_ten_thousand_tensors() -> None:
    grads = [torch.full((1 + i % 7,), 0.01 * (i % 11)) for i in range(10_000)]
    check_against_torch(grads, 1.0, 2.0)


@pytest.mark.slow
def test_more_elements_than_32_bits_of_bytes_count() -> None:
    grad = torch.full((300_000_000,), 0.5, dtype=torch.bfloat16)
    grad[-1] = 100.0
    norm = rnnfast.clip_grad_norm_(parameters([grad]), 1.0)
    truth = (0.25 * (300_000_000 - 1) + 10_000) ** 0.5
    assert float(norm) == pytest.approx(truth, rel=2**-8)
    assert float(grad[-1]) == pytest.approx(100 / truth, rel=2**-7)
    assert float(grad[0]) == pytest.approx(0.5 / truth, rel=2**-7)
    assert (grad[:-1] == grad[0]).all()
