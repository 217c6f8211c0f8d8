"""What Python adds to the ops that clip on CUDA, on CPU tensors in their place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnnfast import _ext
from rnnfast.clip.kernels import OnCuda

INF = float("inf")


class Ops:
    """As csrc/ops_cuda/clip.h has them."""

    def cuda_clip_norm(
        self, tensors: list[Tensor], p: float, wide: bool, max_norm: float | None
    ) -> Tensor | None:
        if p == INF and not all(t.numel() for t in tensors):
            return None
        norm = nn.utils.get_total_norm([t.double() for t in tensors], p)
        if max_norm is not None:
            self.cuda_clip_scale(tensors, norm, max_norm)
        return norm if wide else norm.to(tensors[0].dtype)

    def cuda_clip_scale(self, tensors: list[Tensor], norm: Tensor, max_norm: float) -> bool:
        for tensor in tensors:
            tensor.data.mul_(min(1.0, max_norm / (norm.item() + 1e-6)))
        return True

    def cuda_clip_value(self, tensors: list[Tensor], bound: float) -> bool:
        for tensor in tensors:
            tensor.data.clamp_(-bound, bound)
        return True


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> OnCuda:
    serving = OnCuda(SimpleNamespace(clip_takes=lambda tensors, written, bound=None: True))
    monkeypatch.setattr(serving, "_ops", Ops())
    return serving


@pytest.mark.parametrize("if_finite", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_versions_are_counted_where_something_was_changed(
    kernels: OnCuda, wide: bool, if_finite: bool
) -> None:
    tensors = [torch.full((3,), 2.0), torch.full((4,), 3.0)]
    norm = kernels.norm(tensors, 2.0, wide)
    assert [t._version for t in tensors] == [0, 0]
    again = kernels.norm(tensors, 2.0, wide, 1.0, if_finite)
    assert norm is not None
    assert again is not None
    assert norm.dtype == (torch.float64 if wide else torch.float32)
    torch.testing.assert_close(again, norm)
    assert [t._version for t in tensors] == [1, 1]
    torch.testing.assert_close(nn.utils.get_total_norm(tensors), torch.tensor(1.0))
    assert kernels.clamp(tensors, 0.1)
    assert [t._version for t in tensors] == [2, 2]
    assert max(t.max().item() for t in tensors) == pytest.approx(0.1)


def test_only_a_finite_norm_scales_where_that_is_asked_for(kernels: OnCuda) -> None:
    tensors = [torch.tensor([1.0, INF])]
    norm = kernels.norm(tensors, 2.0, False, 1.0, True)
    assert norm is not None
    assert norm.isinf()
    assert (tensors[0]._version, tensors[0][0].item()) == (0, 1.0)
    kernels.norm(tensors, 2.0, False, 1.0, False)
    assert (tensors[0]._version, tensors[0][0].item()) == (1, 0.0)


def test_what_is_not_taken_is_not_touched(kernels: OnCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.ones(2), torch.ones(0)]
    assert kernels.norm(tensors, INF, False, 1.0) is None  # torch raises
    assert not kernels.clamp(tensors, float("nan"))
    monkeypatch.setattr(kernels, "_takes", lambda *_: False)
    assert kernels.norm(tensors, 2.0, False, 1.0) is None
    assert not kernels.scale(tensors, torch.tensor(3.0), 1.0)
    assert not kernels.clamp(tensors, 0.5)
    assert [t._version for t in tensors] == [0, 0]


def test_tensors_of_the_cpu_are_not_taken() -> None:
    module: Any = _ext.cpu()
    if module is None:
        pytest.skip(str(_ext.why_no_cpu()))
    assert not module.clip_takes([torch.ones(3)], True)
    assert not module.clip_takes([], False)
