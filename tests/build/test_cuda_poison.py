"""The first CUDA kernel: poisoning a tensor, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from rnnfast import _ext


@pytest.fixture
def poison():
    module = _ext.load()
    if module is None:
        pytest.skip(f"the extension is not loaded here: {_ext.why_missing()}")
    if not module.with_cuda:
        pytest.skip(f"built without CUDA: {_ext.build_record()['cuda_note']}")
    return module.cuda_poison


@pytest.fixture
def on_gpu(poison):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    return poison


def test_a_cpu_tensor_is_refused(poison):
    hint = "" if torch.cuda.is_available() else "; torch sees no CUDA device here"
    with pytest.raises(ValueError, match=f"expected a CUDA tensor, got one on cpu{hint}$"):
        poison(torch.zeros(3))


def test_what_is_no_tensor_is_refused(poison):
    with pytest.raises(TypeError):
        poison([1.0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("first", "count"), [(0, 1), (1, 1), (1, 2), (3, 0), (1, 5_000_001)])
def test_every_element_and_no_other_is_nan(on_gpu, dtype, first, count):
    buffer = torch.zeros(first + count + 1, dtype=dtype, device="cuda")
    on_gpu(buffer[first : first + count])
    expected = torch.zeros_like(buffer, dtype=torch.bool)
    expected[first : first + count] = True
    assert torch.equal(buffer.isnan(), expected)


@pytest.mark.gpu
def test_on_the_gpu_other_dtypes_and_strided_views_are_refused(on_gpu):
    with pytest.raises(TypeError, match="floating-point"):
        on_gpu(torch.zeros(3, dtype=torch.int64, device="cuda"))
    with pytest.raises(ValueError, match="dense"):
        on_gpu(torch.zeros(4, 4, device="cuda")[:, 1:3])
