"""Every cell on every backend, dtype, size and option against the naive loop in float64."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from rnnfast.backends import registry

from .cases import DTYPES, Case, matrix, oracle, refusal, run, slopes_of
from .oracle import assert_all_close_to_oracle, largest_error


def check(case: Case, backend: str, dtype: torch.dtype, route: str = "eager") -> None:
    reason = refusal(case, backend, dtype)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    found = run(case, backend, dtype, route)
    assert_all_close_to_oracle(found, *yardsticks(case, dtype, found["y"]))


NUDGES = 16


def yardsticks(
    case: Case, dtype: torch.dtype, y: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """What a run that gave ``y`` is judged by: float64's results, and torch's own in ``dtype``.

    Below float64, where rounding moves a state of rnn_relu across 0, its slope jumps: of two right
    runs the gradients differ by all that flows through it. So both have the slopes that ``y`` has.
    That ``y`` may have them is for its values to show: float64's are not changed by it.
    """
    if dtype == torch.float64:
        return oracle(case, dtype), None
    slopes = slopes_of(case, y)
    return oracle(case, torch.float64, slopes=slopes), torchs_own(case, dtype, slopes)


@functools.lru_cache(maxsize=256)
def torchs_own(case: Case, dtype: torch.dtype, slopes: bytes | None = None) -> dict[str, Tensor]:
    """What torch reaches in this precision: of its cells in a loop and, where it has one, its
    layer, for each result the one that is further from float64.

    The largest error of many numbers tells how far off a right result may be; that of a single one
    may be anything down to 0. So for those it is also the cells on inputs that were rounded in
    NUDGES other ways. ``slopes``: only the loop, which can be given them.
    """
    truth = oracle(case, torch.float64, slopes=slopes)
    runs = [oracle(case, dtype, slopes=slopes)]
    if slopes is None and refusal(case, "torch", dtype) is None:
        runs.append(run(case, "torch", dtype))
    single = {name for name, ref in truth.items() if ref.numel() == 1}
    more = [oracle(case, dtype, k, slopes) for k in range(1, NUDGES + 1)] if single else []
    return {
        name: max(
            (r[name] for r in (runs + more if name in single else runs)),
            key=lambda t: largest_error(t, ref),
        )
        for name, ref in truth.items()
    }


# the oracle is costly and cached: all backends of a case stand next to one another
@pytest.mark.parametrize("case", matrix(), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("backend", registry.BACKENDS)
@pytest.mark.usefixtures("poisoned")
def test_backend_agrees_with_the_naive_loop(backend: str, dtype: torch.dtype, case: Case) -> None:
    check(case, backend, dtype)


def test_the_slopes_of_a_run_change_gradients_and_nothing_else() -> None:
    case = Case("rnn_relu", lengths=True, resets=True)
    plain = oracle(case, torch.float64)
    own = slopes_of(case, plain["y"])
    assert own is not None
    other = bytes(1 - slope for slope in own)
    with_own, with_other = (oracle(case, torch.float64, slopes=s) for s in (own, other))
    assert_all_close_to_oracle(with_own, plain)
    for name in ("y", "h"):
        assert torch.equal(with_other[name], with_own[name])
    assert largest_error(with_other["grad of w_hh"], plain["grad of w_hh"]) > 0.1


def test_a_single_number_is_judged_by_many_roundings() -> None:
    case, dtype = Case("lstm", 1, 1, 1, 1), torch.float32
    truth, own = yardsticks(case, dtype, torch.zeros(0))
    assert own is not None
    for name, ref in truth.items():
        errors = [largest_error(oracle(case, dtype, k)[name], ref) for k in range(NUDGES + 1)]
        judged_by = largest_error(own[name], ref)
        assert judged_by >= (max(errors) if ref.numel() == 1 else errors[0])
        assert judged_by < 1e-5 * float(ref.abs().max())


COMPOSITE = [name for name, backend in registry.BACKENDS.items() if backend.composite]


@pytest.mark.parametrize("case", [c for c in matrix() if c.H <= 33], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("backend", COMPOSITE)
@pytest.mark.usefixtures("poisoned")
def test_composite_backend_behind_the_op(backend: str, dtype: torch.dtype, case: Case) -> None:
    check(case, backend, dtype, route="op")
