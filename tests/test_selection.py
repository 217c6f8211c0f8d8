"""Who computes what: registry, use_backend, RNNFAST_BACKEND, explain."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import rnnfast
from rnnfast.backends import measured, preference, registry
from rnnfast.backends.preference import order
from rnnfast.backends.registry import requested_backend
from rnnfast.problem import problem_of

from .cases import Case, leaves, scan_of, taking


def problem(**options):
    case = Case(**{"cell": "lstm", **options})
    return problem_of(scan_of(case, leaves(case, torch.float32)))


def first(problem) -> str:
    return order(problem).names[0]


@pytest.mark.parametrize("isa", ["avx2", "avx512", "baseline", "none"])
def test_auto_asks_in_the_order_that_was_measured(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "isa", lambda: isa)
    gru = problem(cell="gru", T=64, B=8, H=64)
    assert first(gru) == "cpu"
    assert first(gru._replace(device="cuda")) == "torch"
    assert first(gru._replace(device="cuda", has_lengths=True)) == "torch"
    assert first(gru._replace(autocast=torch.bfloat16)) == "cpu"
    assert first(gru._replace(recorded=True)) == "torch"
    assert first(gru._replace(H=3)) == "torch"
    serving = gru._replace(T=1, B=1, options=gru.options._replace(training=False))
    # single steps were measured with today's kernels on AVX-512 only
    for cell in ("rnn_relu", "gru"):
        assert first(serving._replace(cell=cell)) == ("cpu" if isa == "avx512" else "torch")
    assert first(serving._replace(cell="lstm")) == ("cpu" if isa == "avx512" else "torch")
    big = problem()._replace(T=20, H=1024, B=64)
    if isa == "avx512":
        assert first(big) == "torch"
        assert first(problem()._replace(T=20, H=512, B=1)) == "cpu"
    slow_in_torch = {"has_lengths": True, "tracing": True, "kind": "tokens"}
    for field, value in slow_in_torch.items():
        assert first(big._replace(**{field: value})) == "cpu"
    for every in (gru, big, serving):
        assert sorted(order(every).names) == sorted(registry.BACKENDS)
        assert order(every).reason


@pytest.mark.parametrize("has_it", [True, False])
def test_a_bfloat16_lstm_goes_to_onednn_where_that_has_it(
    has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = None if has_it else "no primitive"
    monkeypatch.setattr(preference, "lstm_failure", lambda *_: failure)
    monkeypatch.setattr(preference.measured, "has_dots", lambda: False)
    asked = problem(T=64, B=8, H=64)._replace(dtype=torch.bfloat16)
    assert first(asked) == ("torch" if has_it else "cpu")
    assert first(asked._replace(cell="gru")) == "cpu"


def test_it_stays_where_ours_has_dot_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference, "lstm_failure", lambda *_: None)
    monkeypatch.setattr(preference.measured, "has_dots", lambda: True)
    asked = problem(T=64, B=64, H=64)._replace(dtype=torch.bfloat16)
    for training, B, expected in [(True, 64, "cpu"), (False, 8, "cpu"), (False, 64, "torch")]:
        options = asked.options._replace(training=training)
        assert first(asked._replace(B=B, options=options)) == expected


def test_auto_moves_on_from_a_backend_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(registry.BACKENDS["cpu"]), "unusable", lambda self: "not built")
    asked = problem(cell="gru")
    assert registry.select(asked).name == "torch"
    assert registry.select(asked._replace(has_resets=True)).name == "reference"
    with pytest.raises(rnnfast.BackendError, match="not built"):
        registry.select(asked, "cpu")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"cell": "gru_reset_before"}, "gru_reset_before"),
        ({"kind": "gates"}, "project"),
        ({"resets": True}, "resets"),
        ({"all_states": True}, "cell state"),
    ],
)
def test_torch_says_why_not(options: dict, word: str) -> None:
    asked = problem(**options)
    assert word in (registry.BACKENDS["torch"].why_not(asked) or "")
    with pytest.raises(rnnfast.BackendError, match=word):
        registry.select(asked, "torch")


def test_checkpoint_every_refuses_nobody() -> None:
    plain = problem()
    asked = plain._replace(options=plain.options._replace(checkpoint_every=4))
    for backend in registry.BACKENDS.values():
        assert registry.refusal(backend, asked) == registry.refusal(backend, plain)


@pytest.mark.parametrize("options", [{"cell": "mgu"}, {"cell": "gru", "resets": True}])
def test_no_time_is_told_of_a_kernel_that_torch_has_not(options: dict) -> None:
    told = preference.order(problem(**options))
    assert told.names[0] == "cpu"
    assert told.reason == registry.BACKENDS["torch"].why_not(problem(**options))


def test_a_backend_by_name_never_falls_back() -> None:
    layer = rnnfast.GRU(3, 4, reset_after=False)
    with rnnfast.use_backend("torch"), pytest.raises(rnnfast.BackendError, match="no kernel"):
        layer(torch.randn(2, 1, 3))


def test_unknown_name() -> None:
    with (
        pytest.raises(ValueError, match="no backend is called 'fast'"),
        rnnfast.use_backend("fast"),
    ):
        pass
    with pytest.raises(ValueError, match="there are: auto, torch, cpu, cuda, triton, reference"):
        registry.select(problem(), "fast")


def test_use_backend_nests_and_ends() -> None:
    before = requested_backend()
    with rnnfast.use_backend("torch"):
        with rnnfast.use_backend("reference"):
            assert requested_backend() == "reference"
        assert requested_backend() == "torch"
    assert requested_backend() == before


def test_use_backend_is_of_its_thread() -> None:
    seen = []
    with rnnfast.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(requested_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_environment_variable() -> None:
    code = (
        "import rnnfast, torch; l = rnnfast.RNN(2, 3);"
        "print(rnnfast.explain(l, torch.zeros(2, 1, 2)).choices[0].chosen)"
    )
    assert run_python(code, RNNFAST_BACKEND="reference").stdout.strip() == "reference"
    wrong = run_python(code, RNNFAST_BACKEND="cudnn")
    assert wrong.returncode != 0
    assert "no backend is called 'cudnn'" in wrong.stderr


def test_import_needs_no_triton_nvcc_or_compiler() -> None:
    code = "import sys, rnnfast; print('triton' in sys.modules)"
    done = run_python(code, PATH="/nonexistent", CUDA_HOME="/nonexistent")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_explain_names_everyone_who_was_asked() -> None:
    layer = rnnfast.LSTM(3, 4, 2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    with rnnfast.use_backend("reference"):
        told = rnnfast.explain(layer, x, resets=torch.zeros(5, 2, dtype=torch.bool))
    assert [(c.layer, c.direction) for c in told.choices] == [
        (0, "forward"),
        (0, "reverse"),
        (1, "forward"),
        (1, "reverse"),
    ]
    for choice in told.choices:
        assert choice.answers == (("reference", None),)
        assert choice.chosen == "reference"
    assert "-> reference: a loop" in str(told)


def test_explain_shows_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(registry.BACKENDS["cpu"]), "unusable", lambda self: "not built")
    layer = rnnfast.GRU(3, 4)
    told = rnnfast.explain(layer, torch.randn(5, 2, 3), resets=torch.zeros(5, 2).bool())
    assert told.choices[0].answers == (
        ("cpu", "not built"),
        ("torch", "torch's kernels have no resets"),
        ("cuda", registry.refusal(registry.BACKENDS["cuda"], told.choices[0].problem)),
        ("triton", "it needs a GPU, and torch sees none"),
        ("reference", None),
    )
    assert "torch: no: torch's kernels have no resets" in str(told)


def test_explain_what_was_asked_by_name_and_refused() -> None:
    layer = rnnfast.GRU(3, 4, reset_after=False)
    with rnnfast.use_backend("torch"):
        told = rnnfast.explain(layer, torch.randn(5, 2, 3))
    assert told.choices[0].chosen is None
    assert "nobody" in str(told)


@pytest.mark.parametrize("name", taking(torch.float32))
def test_explain_agrees_with_what_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for backend in registry.BACKENDS.values():
        method = "run" if backend.composite else "forward"
        original = getattr(backend, method)

        def spy(scan, original=original, name=backend.name):
            ran.append(name)
            return original(scan)

        monkeypatch.setattr(backend, method, spy)
    layer = rnnfast.GRU(3, 4, 2)
    x, lengths = torch.randn(5, 2, 3), torch.tensor([5, 3])
    with rnnfast.use_backend(name):
        layer(x, lengths=lengths)
        told = rnnfast.explain(layer, x, lengths=lengths)
    assert ran == [c.chosen for c in told.choices] == [name, name]


def test_explain_wants_a_layer_of_ours() -> None:
    with pytest.raises(TypeError, match="layer of rnnfast, got: LSTM"):
        rnnfast.explain(torch.nn.LSTM(2, 3), torch.zeros(1, 1, 2))


def test_status_lists_every_backend() -> None:
    assert [row[0] for row in registry.status()] == list(registry.BACKENDS)
