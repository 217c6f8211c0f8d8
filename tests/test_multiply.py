"""products/multiply.py: our product of large matrices on the CPU, and where torch's is taken."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from torch import Tensor

from rnnfast import _ext
from rnnfast.products import multiply

pytestmark = pytest.mark.skipif(
    _ext.why_no_cpu() is not None, reason=str(_ext.why_no_cpu() or "built")
)

# (M, K, N): small and odd, more than a block of steps, thin, nothing to sum, nothing at all
SIZES = [(5, 7, 3), (33, 900, 50), (200, 600, 20), (64, 520, 128), (96, 700, 96)]
SIZES += [(4, 0, 6), (0, 3, 2), (3, 2, 0)]
EPS = torch.finfo(torch.float32).eps
ARRANGED = ("rows", "columns", "apart", "expanded")


def matrix(rows: int, columns: int, arranged: str, dtype: torch.dtype) -> Tensor:
    """Random values that lie in memory as ``arranged`` says."""
    if arranged == "columns":
        return torch.randn(columns, rows, dtype=dtype).t()
    if arranged == "apart":
        return torch.randn(rows, 2 * columns, dtype=dtype)[:, ::2]
    if arranged == "expanded":
        return torch.randn(1, columns, dtype=dtype).expand(rows, columns)
    return torch.randn(rows, columns, dtype=dtype)


def assert_near(found: Tensor, left: Tensor, right: Tensor, begun: Tensor | float) -> None:
    """Within twice torch's own error, and 4 eps of the largest value."""
    exact = left.double() @ right.double() + begun
    theirs = (left @ right + begun).sub(exact).abs().max() if exact.numel() else torch.zeros(())
    ours = found.sub(exact).abs().max() if exact.numel() else torch.zeros(())
    largest = exact.abs().max() if exact.numel() else torch.zeros(())
    eps = torch.finfo(found.dtype).eps
    # float64 has no finer arithmetic to be judged by: as many roundings as there are steps
    allowed = 2 * theirs + 4 * eps * largest if eps > 1e-10 else eps * (4 + left.shape[1]) * 10
    assert ours <= allowed, (ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_is_the_product(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    M, K, N = size
    kernel = _ext.cpu().cpu_product  # type: ignore[union-attr]
    for by_row, by_column in itertools.product(ARRANGED, ARRANGED):
        left, right = matrix(M, K, by_row, dtype), matrix(K, N, by_column, dtype)
        row, total = torch.randn(2 * N, dtype=dtype)[::2], torch.randn(M, N, dtype=dtype)
        assert_near(kernel(left, right), left, right, 0.0)
        assert_near(kernel(left, right, row=row), left, right, row)
        wide = torch.full((M, 2 * N + 3), torch.nan, dtype=dtype)
        multiply.product_into(wide[:, 2 : 2 + N], left, right, row)
        assert_near(wide[:, 2 : 2 + N], left, right, row)
        assert wide[:, :2].isnan().all()
        assert wide[:, 2 + N :].isnan().all()
        into = total.clone()
        assert kernel(left, right, into=into) is not None
        assert_near(into, left, right, total)


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one processor, which threads would not share"
)
def test_does_not_depend_on_the_number_of_threads() -> None:
    torch.manual_seed(0)
    kernel, before = _ext.cpu().cpu_product, torch.get_num_threads()  # type: ignore[union-attr]
    pairs = [
        (matrix(M, K, arranged, torch.float32), matrix(K, N, "rows", torch.float32))
        for (M, K, N), arranged in itertools.product(SIZES[:4], ARRANGED[:2])
    ]
    found = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found[threads] = [kernel(*pair) for pair in pairs]
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found.values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.ones(2, 3), torch.ones(4, 2)), ValueError, "cannot be multiplied"),
        ((torch.ones(2, 3), torch.ones(3, 2, dtype=torch.float64)), TypeError, "must be Float"),
        ((torch.ones(2, 3).half(), torch.ones(3, 2).half()), TypeError, "expected float32"),
        ((torch.ones(3), torch.ones(3, 2)), ValueError, "a must be 2-D"),
        ((torch.ones(2, 3, device="meta"), torch.ones(3, 2)), ValueError, "must be on the CPU"),
    ],
)
def test_bad_input(arguments: tuple[Tensor, Tensor], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _ext.cpu().cpu_product(*arguments)  # type: ignore[union-attr]


def test_bad_beginnings() -> None:
    kernel = _ext.cpu().cpu_product  # type: ignore[union-attr]
    left, right = torch.ones(2, 3), torch.ones(3, 4)
    with pytest.raises(ValueError, match="row must have shape"):
        kernel(left, right, row=torch.ones(3))
    with pytest.raises(ValueError, match="into must be contiguous"):
        kernel(left, right, into=torch.ones(4, 2).t())
    with pytest.raises(ValueError, match="into must be contiguous"):
        kernel(left, right, into=torch.ones(4, 4))
    for out in (torch.ones(4, 2).t(), torch.ones(2, 5)):
        with pytest.raises(ValueError, match="and whole rows"):
            kernel(left, right, out=out)
    with pytest.raises(TypeError, match="out must be Float"):
        kernel(left, right, out=torch.ones(2, 4).double())


def test_ours_is_for_plain_tensors_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def kernel(left: Tensor, right: Tensor, **_: object) -> Tensor:
        taken.append(1)
        return left @ right

    monkeypatch.setattr(multiply, "_loaded", lambda slower=False: kernel)
    left, right = torch.randn(2, 3), torch.randn(3, 4)
    multiply.product(left, right)
    assert len(taken) == 1
    wanted = left.clone().requires_grad_()
    multiply.product(wanted, right).sum().backward()
    assert wanted.grad is not None
    multiply.product(left.half(), right.half())
    multiply.product(left.to_sparse(), right)
    multiply.product(left.to("meta"), right.to("meta"))
    assert len(taken) == 1
    row = torch.zeros(4, requires_grad=True)
    multiply.product(left, right, row).sum().backward()
    assert row.grad is not None
    assert len(taken) == 1
    with torch.no_grad():
        multiply.product(wanted, right, row)
    assert len(taken) == 2


@pytest.mark.parametrize(
    ("size", "ours"),
    [
        ((32, 8192, 3), True),
        ((32, 8193, 16), False),
        ((32, 8193, 15), True),  # where it is far less exact
        ((3, 8193, 32), True),
        ((3000, 2000, 4000), True),
    ],
)
def test_torchs_is_taken_where_it_is_faster(
    size: tuple[int, int, int], ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiply, "_loaded", lambda slower=False: "ours")
    M, K, N = size
    one = torch.zeros(1, 1)
    found = multiply._kernel(one.expand(M, K), one.expand(K, N))
    assert found == ("ours" if ours else None)


@pytest.mark.parametrize(("M", "N"), [(21, 7), (5, 40), (1, 1)])
def test_a_long_sum_for_a_narrow_result_is_as_exact_as_step_by_step(M: int, N: int) -> None:
    # a gradient of weights of T = 171, B = 221, where torch's product was off by ten times as much
    torch.manual_seed(0)
    left, right = torch.randn(37791, M) * 0.1 + 0.02, torch.randn(37791, N).tanh() + 0.05
    exact = left.double().t() @ right.double()
    by_step = sum(a.t() @ b for a, b in zip(left.split(221), right.split(221), strict=True))
    tolerance = 2 * (by_step - exact).abs().max() + 4 * EPS * exact.abs().max()
    assert (multiply.product(left.t(), right) - exact).abs().max() <= tolerance
    total = multiply.add_product(torch.zeros(M, N), left.t(), right)
    assert (total - exact).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("isa", "expected"), [("avx2", "ours"), ("baseline", None), ("avx512", "ours")]
)
def test_a_processor_for_which_it_was_not_measured_has_torchs(
    isa: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Module:
        cpu_product = "ours"

        @staticmethod
        def cpu_isa() -> str:
            return isa

    monkeypatch.setattr(multiply, "_module", lambda: Module)
    assert multiply._loaded.__wrapped__() == expected
