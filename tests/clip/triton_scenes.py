"""The Triton kernels in Triton's interpreter, on CPU tensors: run as a program by test_triton.py,
since Triton looks at TRITON_INTERPRET when it is imported."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn

import rnnfast
from rnnfast.clip import kernels
from rnnfast.triton.clip_lists import TritonKernels

from ..triton import interpreter
from .lists import FLOATS, INF, NAN, copies, exact_norm, mixed, parameters

LIMITS = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def small(dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    return [g for g in mixed(dtype) if g is not None and g.numel() < 1100]


def clips_as_torch_does() -> None:
    for p in (2.0, 1.0, INF, 2.5):
        grads = [g for g in small() if p != INF or g.numel()]
        truth = exact_norm(grads, p)
        for max_norm in (1.0, 1e9) if p == 2 else (1.0,):
            ours, theirs = parameters(copies(grads)), parameters(copies(grads))
            norm = rnnfast.clip_grad_norm_(ours, max_norm, p)
            assert math.isclose(float(norm), truth, rel_tol=1e-6), (p, norm, truth)
            assert norm.dtype == nn.utils.clip_grad_norm_(theirs, max_norm, p).dtype
            factor = min(1.0, max_norm / (truth + 1e-6))
            for own, grad in zip(ours, grads, strict=True):
                limit = LIMITS[grad.dtype]
                torch.testing.assert_close(
                    own.grad.double(), grad.double() * factor, rtol=limit, atol=limit / 100
                )
                assert own.grad.stride() == grad.stride()


def results_have_torchs_dtype() -> None:
    for dtype in FLOATS:
        norm = rnnfast.get_total_norm(small(dtype))
        assert norm.dtype == dtype
        torch.testing.assert_close(norm, nn.utils.get_total_norm(small(dtype)), rtol=2e-2, atol=0)


def large_and_small_numbers() -> None:
    for dtype, size, p in (
        (torch.float32, 1e30, 2.0),
        (torch.float64, 1e300, 2.0),
        (torch.float64, 1.2e154, 2.0),
        (torch.float64, 1e-200, 2.0),
        (torch.float64, 1e160, 3.0),
    ):
        grads = [torch.full((9000,), size, dtype=dtype), torch.zeros(3)]
        ours = parameters(copies(grads))
        truth = exact_norm(grads, p)
        norm = rnnfast.clip_grad_norm_(ours, truth / 2, p)
        assert math.isclose(float(norm), truth, rel_tol=1e-6), (dtype, size, norm, truth)
        if size > 1:
            torch.testing.assert_close(ours[0].grad, grads[0] / 2, rtol=1e-5, atol=0)


def not_finite() -> None:
    for p, bads in ((2.0, (INF, -INF, NAN)), (1.0, (INF,)), (INF, (INF, NAN)), (3.0, (-INF, NAN))):
        for bad in bads:
            for dtype in (torch.float32, torch.float64, torch.float16)[: 3 if p == 2 else 1]:
                grads = [torch.randn(50), torch.randn(700).to(dtype)]
                grads[1][300] = bad
                ours, theirs = parameters(copies(grads)), parameters(copies(grads))
                norm = rnnfast.clip_grad_norm_(ours, 1.0, p)
                expected = nn.utils.clip_grad_norm_(theirs, 1.0, p)
                assert torch.equal(norm.isnan(), expected.isnan())
                assert torch.equal(norm.isinf(), expected.isinf())
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, equal_nan=True)


def lists_with_repeats_and_shared_memory() -> None:
    def views() -> list[torch.Tensor]:
        memory = torch.arange(1.0, 20_001.0) / 1e4
        return [memory[:15_000], memory[5_000:], memory.view(2, -1)[:, :1000]]

    for make in (views, lambda: [*(g := [torch.randn(300), torch.randn(20)]), g[0]]):
        torch.manual_seed(1)
        ours = make()
        torch.manual_seed(1)
        theirs = make()
        norm = rnnfast.clip_grad_norm_(parameters(ours), 1.0)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(parameters(theirs), 1.0))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def the_other_functions() -> None:
    grads = small()
    ours, theirs = parameters(copies(grads)), parameters(copies(grads))
    rnnfast.clip_grads_with_norm_(ours, 2.0, torch.tensor(8.0))
    nn.utils.clip_grads_with_norm_(theirs, 2.0, torch.tensor(8.0))
    rnnfast.clip_grad_value_(ours, 0.25)
    nn.utils.clip_grad_value_(theirs, 0.25)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def an_error_leaves_the_gradients() -> None:
    (parameter,) = parameters([torch.tensor([1.0, INF])])
    with pytest.raises(RuntimeError, match="non-finite"):
        rnnfast.clip_grad_norm_(parameter, 1.0, error_if_nonfinite=True)
    assert parameter.grad[0] == 1


SCENES = (
    clips_as_torch_does,
    results_have_torchs_dtype,
    large_and_small_numbers,
    not_finite,
    lists_with_repeats_and_shared_memory,
    the_other_functions,
    an_error_leaves_the_gradients,
)


def main() -> None:
    torch.set_num_threads(1)
    interpreter.mend()
    serving = TritonKernels()
    kernels.of_device = lambda device: serving
    for scene in SCENES:
        torch.manual_seed(0)
        scene()
        print("ok", scene.__name__)


if __name__ == "__main__":
    sys.exit(main())
