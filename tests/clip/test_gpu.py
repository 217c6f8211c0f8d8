"""The CUDA and Triton clip kernels on a GPU, against torch's own; run by `make gpu-check`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast import _ext
from rnnfast.clip import kernels

from .lists import FLOATS, INF, exact_norm, mixed, parameters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
RTOL = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(params=["cuda", "triton"])
def serving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cuda":
        if (missing := _ext.why_no_cuda()) is not None:
            pytest.skip(missing)
        chosen: kernels.Kernels = kernels.OnCuda(_ext.cpu())
    else:
        chosen = pytest.importorskip("rnnfast.triton.clip_lists").TritonKernels()
    monkeypatch.setattr(kernels, "of_device", lambda device: chosen)
    return str(request.param)


def on_gpu(grads: list[Tensor | None]) -> list[Tensor]:
    return [g.cuda() for g in grads if g is not None]


@pytest.mark.parametrize("p", [2.0, 1.0, INF, 3.0, 0.5])
@pytest.mark.parametrize("dtype", [None, *FLOATS], ids=str)
def test_clips(serving: str, dtype: torch.dtype | None, p: float) -> None:
    grads = [g for g in mixed(dtype) if g is not None and (p != INF or g.numel())]
    truth = exact_norm(grads, p)
    ours = parameters(on_gpu(grads))
    norm = rnnfast.clip_grad_norm_(ours, truth / 2, p)
    assert norm.device.type == "cuda"
    assert norm.dtype == nn.utils.get_total_norm(on_gpu(grads), p).dtype
    assert float(norm) == pytest.approx(truth, rel=RTOL[norm.dtype])
    for own, grad in zip(ours, grads, strict=True):
        limit = RTOL[grad.dtype]
        torch.testing.assert_close(own.grad.cpu(), grad / 2, rtol=limit, atol=limit / 10)


@pytest.mark.parametrize("count", [3, 1000])
def test_same_bits_from_run_to_run_and_large_lists(serving: str, count: int) -> None:
    grads = [torch.randn(50_000 // count + i, device="cuda") for i in range(count)]

    def clipped() -> list[Tensor]:
        ours = parameters([g.clone() for g in grads])
        return [rnnfast.clip_grad_norm_(ours, 1.0), *(p.grad for p in ours)]

    first = clipped()
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(first, clipped(), strict=True))


def test_squares_beyond_the_range(serving: str) -> None:
    grads = [torch.full((9000,), 1e30), torch.ones(10), torch.full((5,), 1e200).double()]
    ours = parameters(on_gpu(grads))
    truth = exact_norm(grads, 2.0)
    assert float(rnnfast.clip_grad_norm_(ours, truth / 2)) == pytest.approx(truth, rel=1e-6)
    torch.testing.assert_close(ours[0].grad.cpu(), grads[0] / 2)


def test_no_wait_for_the_device(serving: str) -> None:
    ours = parameters([torch.randn(1000, device="cuda") for _ in range(300)])
    rnnfast.clip_grad_norm_(ours, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rnnfast.clip_grad_norm_(ours, 0.5)
        rnnfast.clip_grad_value_(ours, 0.01)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("count", [3, 1000])
def test_kernels_launched(serving: str, count: int) -> None:
    """One, of CUDA's; two, of Triton's."""
    ours = parameters([torch.randn(300, device="cuda") for _ in range(count)])
    rnnfast.clip_grad_norm_(ours, 1.0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        rnnfast.clip_grad_norm_(ours, 0.5)
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if "mem" not in e.name.lower()]
    assert len(names) == (1 if serving == "cuda" else 2), names


@pytest.mark.parametrize("count", [3, 1000])
def test_in_a_cuda_graph(count: int) -> None:
    if (missing := _ext.why_no_cuda()) is not None:
        pytest.skip(missing)
    values = [torch.randn(300, device="cuda") for _ in range(count)]
    ours = parameters([v.clone() for v in values])
    rnnfast.clip_grad_norm_(ours, 1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm = rnnfast.clip_grad_norm_(ours, 1.0)
    for scale in (1.0, 3.0, 0.5):
        for parameter, value in zip(ours, values, strict=True):
            parameter.grad.copy_(scale * value)
        expected = nn.utils.get_total_norm([p.grad for p in ours])
        graph.replay()
        torch.testing.assert_close(norm, expected)
        total = nn.utils.get_total_norm([p.grad for p in ours])
        torch.testing.assert_close(total, torch.ones_like(total))
