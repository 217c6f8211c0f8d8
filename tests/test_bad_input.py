"""Bad input: a clear error before any work, or a right answer; never a crash."""

from __future__ import annotations

import os
import threading
import warnings

import pytest
import torch

import rnnfast

from .cases import taking

T, B, I, H = 5, 3, 4, 6


@pytest.fixture
def layer() -> rnnfast.LSTM:
    return rnnfast.LSTM(I, H)


X = torch.zeros(T, B, I)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"lengths": torch.tensor([1, -1, 2])}, ValueError, r"in \[0, 5\], found -1"),
        ({"lengths": torch.tensor([1, 6, 2])}, ValueError, r"in \[0, 5\], found 6"),
        ({"lengths": torch.tensor([1, 2])}, RuntimeError, r"lengths should be \[3\], got \[2\]"),
        ({"lengths": torch.tensor([1.0, 2, 3])}, TypeError, "torch.int64, got torch.float32"),
        ({"lengths": torch.tensor([1, 2, 3]).int()}, TypeError, "got torch.int32"),
        ({"lengths": torch.tensor([1, 2, 3], device="meta")}, RuntimeError, "device cpu, got meta"),
        ({"resets": torch.zeros(T, B)}, TypeError, "torch.bool, got torch.float32"),
        ({"resets": torch.zeros(B, T, dtype=torch.bool)}, RuntimeError, r"\[5, 3\], got \[3, 5\]"),
        ({"hx": torch.zeros(1, B, H)}, ValueError, r"pair \(h_0, c_0\), got a tensor"),
        ({"hx": (torch.zeros(1, B, H),)}, ValueError, "got 1 items"),
        (
            {"hx": (torch.zeros(1, B, H), torch.zeros(1, B, H).double())},
            RuntimeError,
            "not the same dtype",
        ),
    ],
)
def test_bad_arguments(layer: rnnfast.LSTM, arguments: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        layer(X, **arguments)


@pytest.mark.parametrize(
    ("input", "error", "words"),
    [
        (X.double(), ValueError, "does not match weight dtype"),
        (X[..., :3], RuntimeError, "Expected 4, got 3"),
        (X[:0], RuntimeError, "Expected sequence length to be larger than 0 in RNN"),
        (torch.zeros(1, 1, 1, I), ValueError, "Expected input to be 2D or 3D, got 4D instead"),
        (X.to("meta"), RuntimeError, "not at the same device"),
        (torch.zeros(T, B, I, dtype=torch.int32), ValueError, "does not match weight dtype"),
        (torch.full((T, B), 4), IndexError, "0 <= token < 4, found 4"),
        (torch.full((T, B), -2), IndexError, "found -2"),
        (torch.zeros(T, B, 2, dtype=torch.int64), ValueError, "1D or 2D tokens, got 3D"),
        (torch.zeros(0, B, dtype=torch.int64), RuntimeError, "larger than 0"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_tensors(
    layer: rnnfast.LSTM, input: torch.Tensor, error: type, words: str, backend: str
) -> None:
    with rnnfast.use_backend(backend), pytest.raises(error, match=words):
        layer(input)


@pytest.mark.parametrize("backend", taking(torch.float32))
@pytest.mark.parametrize("cls", [rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU])
def test_an_empty_batch_works(cls: type, backend: str) -> None:
    layer = cls(I, H, 2, bidirectional=True)
    with rnnfast.use_backend(backend):
        y, _ = layer(torch.zeros(T, 0, I))
        assert y.shape == (T, 0, 2 * H)
        y, _ = layer(torch.zeros(T, 0, I), lengths=torch.zeros(0, dtype=torch.int64))
        spoilt = [torch.full_like(p, float("nan")) for p in layer.parameters()]
        del spoilt  # whose memory the gradients may have
        y.sum().backward()
        assert not any(p.grad is None or p.grad.any() for p in layer.parameters())
        assert layer(torch.zeros(T, 0, dtype=torch.int64))[0].shape == (T, 0, 2 * H)


@pytest.mark.parametrize("backend", taking(torch.float32))
def test_views_work(layer: rnnfast.LSTM, backend: str) -> None:
    x = torch.randn(T, B, I)
    views = {
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "strided": torch.stack([x, x], -1).flatten(-2)[..., ::2],
        "expanded": x[:, :1].expand(T, B, I),
    }
    with rnnfast.use_backend(backend):
        for name, view in views.items():
            expected = layer(view.contiguous())[0]
            torch.testing.assert_close(layer(view)[0], expected, msg=name)


@pytest.mark.parametrize("backend", taking(torch.float32))
def test_more_than_65536_steps(backend: str) -> None:
    layer = rnnfast.RNN(1, 1)
    x = torch.randn(65_600, 1, 1)
    with rnnfast.use_backend(backend), torch.no_grad():
        y, h = layer(x)
        tail, _ = layer(x[-1:], y[-2:-1])
    torch.testing.assert_close(tail, y[-1:])
    torch.testing.assert_close(h, y[-1:])


def test_two_threads_call_one_layer(layer: rnnfast.LSTM) -> None:
    x = torch.randn(T, B, I)
    expected = layer(x)[0].detach()
    results: list = []

    def call() -> None:
        for _ in range(50):
            results.append(layer(x)[0].detach())

    threads = [threading.Thread(target=call) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 100
    for y in results:
        torch.testing.assert_close(y, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_use(layer: rnnfast.LSTM) -> None:
    layer(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, which is the point
        child = os.fork()
    if child == 0:
        y = layer(X)[0]
        os._exit(0 if y.shape == (T, B, H) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_nan_and_inf_pass_as_in_torch() -> None:
    theirs = torch.nn.GRU(I, H)
    x = torch.randn(T, 4, I)
    x[1, 0, 0], x[1, 1, 0], x[1, 2] = torch.nan, torch.inf, 1e4
    for backend in taking(torch.float32):
        ours = rnnfast.GRU(I, H)
        ours.load_state_dict(theirs.state_dict())
        with rnnfast.use_backend(backend):
            torch.testing.assert_close(ours(x)[0], theirs(x)[0], equal_nan=True)


SCAN = {
    "cell": "gru",
    "input": torch.zeros(T, B, I),
    "states": [torch.zeros(B, H)],
    "weights": [torch.zeros(3 * H, I), torch.zeros(3 * H, H)],
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"cell": "qrnn"}, ValueError, "no cell is called 'qrnn'"),
        ({"weights": SCAN["weights"][:1]}, ValueError, "takes the weights w_ih, w_hh, b_ih"),
        ({"states": []}, ValueError, "takes the states h, got 0"),
        ({"states": [torch.zeros(B, H + 1)]}, RuntimeError, r"state h should be \[3, 6\]"),
        ({"states": [torch.zeros(B, H).double()]}, RuntimeError, "share one dtype"),
        ({"states": [torch.zeros(B, H, device="meta")]}, RuntimeError, "on one device"),
        ({"weights": [torch.zeros(18, I), torch.zeros(17, H)]}, RuntimeError, r"\[3\*H, P\]"),
        ({"weights": [torch.zeros(18, 3), torch.zeros(18, H)]}, RuntimeError, r"w_ih should be"),
        ({"weights": [w.int() for w in SCAN["weights"]]}, TypeError, "floating point"),
        ({"input": torch.zeros(T, B)}, RuntimeError, "must have 3 dimensions, got 2"),
        ({"input": torch.zeros(T, B, dtype=torch.int32)}, TypeError, "torch.int64"),
        ({"projected": True}, RuntimeError, r"gates should be \[T, B, 18\]"),
        ({"backend": "none"}, ValueError, "no backend is called 'none'"),
    ],
)
def test_bad_scans(change: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        rnnfast.scan(**{**SCAN, **change})
