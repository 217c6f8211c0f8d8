"""Tools that look at a model or drive it, each with rnnfast's layers inside."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rnnfast

T, B, I, H = 4, 3, 5, 6
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Tagger(nn.Module):
    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer or rnnfast.LSTM(I, H, batch_first=True)
        self.head = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def data() -> TensorDataset:
    return TensorDataset(torch.randn(8, T, I), torch.randint(2, (8,)))


def test_torchinfo() -> None:
    torchinfo = pytest.importorskip("torchinfo", reason="torchinfo is not installed")
    theirs = torchinfo.summary(nn.LSTM(I, H, 2), (T, B, I), verbose=0)
    ours = torchinfo.summary(rnnfast.compat.LSTM(I, H, 2), (T, B, I), verbose=0)
    assert ours.total_params == theirs.total_params
    assert ours.total_mult_adds == theirs.total_mult_adds
    assert "LSTM" in str(ours)
    found = torchinfo.summary(Tagger(), (B, T, I), verbose=0)
    assert [str(info.class_name) for info in found.summary_list] == ["Tagger", "LSTM", "Linear"]


def test_safetensors(tmp_path: Path) -> None:
    st = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model = Tagger(nn.LSTM(I, H, batch_first=True))
    st.save_model(model, str(tmp_path / "theirs"))
    ours = Tagger()
    st.load_model(ours, str(tmp_path / "theirs"))
    x = torch.randn(B, T, I)
    torch.testing.assert_close(ours(x), model(x))
    st.save_model(ours, str(tmp_path / "ours"))
    st.load_model(model, str(tmp_path / "ours"))


@pytest.mark.parametrize("cls", [rnnfast.LSTM, rnnfast.compat.GRU, rnnfast.MGU])
def test_captum(cls: type) -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    model = Tagger(cls(I, H, batch_first=True)).double()
    x = torch.randn(B, T, I, dtype=torch.float64)
    found, delta = attr.IntegratedGradients(model).attribute(
        x, target=1, return_convergence_delta=True, n_steps=200
    )
    assert found.shape == x.shape
    assert float(delta.abs().max()) < 1e-3
    by_layer = attr.LayerActivation(model, model.head).attribute(x)
    assert by_layer.shape == (B, 2)


def test_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data(), 4))
    before = model.layer.weight_hh_l0.detach().clone()
    for x, target in loader:
        accelerator.backward(nn.functional.cross_entropy(model(x), target))
        optimizer.step()
    assert not torch.equal(model.layer.weight_hh_l0, before)
    accelerator.save_state(str(tmp_path))
    accelerator.load_state(str(tmp_path))
    with accelerate.init_empty_weights():
        empty = Tagger()
    assert empty.layer.weight_hh_l0.device.type == "meta"
    accelerator.save_model(model, str(tmp_path / "model"))
    loaded = accelerate.load_checkpoint_and_dispatch(
        empty, str(tmp_path / "model"), device_map={"": "cpu"}
    )
    x = torch.randn(B, T, I)
    torch.testing.assert_close(loaded(x), model(x))


def lightning_module() -> Any:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Lit(lightning.LightningModule):
        def __init__(self, hidden_size: int = H) -> None:
            super().__init__()
            self.layer = rnnfast.GRU(I, hidden_size, batch_first=True)
            self.head = nn.Linear(hidden_size, 2)

        def training_step(self, batch: Any, _: int) -> Tensor:
            x, target = batch
            return nn.functional.cross_entropy(self.head(self.layer(x)[0][:, -1]), target)

        def train_dataloader(self) -> Any:
            return DataLoader(data(), 4)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return lightning, Lit


QUIET = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": True,
}


def test_lightning_trainer(tmp_path: Path) -> None:
    lightning, Lit = lightning_module()
    model = Lit()
    before = model.layer.weight_hh_l0.detach().clone()
    trainer = lightning.Trainer(default_root_dir=tmp_path, gradient_clip_val=1.0, **QUIET)
    trainer.fit(model)
    assert not torch.equal(model.layer.weight_hh_l0, before)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    again = Lit.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert torch.equal(again.layer.weight_hh_l0, model.layer.weight_hh_l0)


def test_lightning_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, Lit = lightning_module()
    pytest.importorskip("jsonargparse", reason="jsonargparse is not installed")
    from lightning.pytorch.cli import LightningCLI

    defaults = {**QUIET, "default_root_dir": str(tmp_path)}
    monkeypatch.setattr(sys, "argv", ["fit", "fit", "--model.hidden_size=8"])
    cli = LightningCLI(Lit, trainer_defaults=defaults, save_config_callback=None)
    assert cli.model.layer.hidden_size == 8


def test_hugging_face_pretrained_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    class Config(transformers.PretrainedConfig):
        model_type = "tagger"

        def __init__(self, hidden: int = H, **more: Any) -> None:
            super().__init__(**more)
            self.hidden = hidden

    class Model(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.layer = rnnfast.LSTM(I, config.hidden, batch_first=True)
            self.head = nn.Linear(config.hidden, 2)
            self.post_init()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x)[0][:, -1])

    model = Model(Config()).eval()
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    x = torch.randn(B, T, I)
    torch.testing.assert_close(again(x), model(x))


def test_skorch() -> None:
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    net = skorch.NeuralNetClassifier(
        Tagger, criterion=nn.CrossEntropyLoss, max_epochs=2, verbose=0, train_split=None
    )
    x, target = data().tensors
    net.fit(x.numpy(), target.numpy())
    assert net.predict(x.numpy()).shape == (8,)


def test_flop_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        rnnfast.LSTM(I, H)(torch.randn(T, B, I))
    assert counter.get_total_flops() == 2 * T * B * 4 * H * (I + H)


@pytest.mark.parametrize("cls", [rnnfast.LSTM, rnnfast.compat.LSTM])
def test_quantize_dynamic_passes_the_layer_by(cls: type) -> None:
    found = torch.ao.quantization.quantize_dynamic(
        Tagger(cls(I, H, batch_first=True)), {nn.LSTM, nn.Linear}
    )
    assert type(found.layer) is cls
    assert type(found.head).__module__.startswith("torch.ao.nn.")
    assert found(torch.randn(B, T, I)).shape == (B, 2)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_torchrl(name: str) -> None:
    modules = pytest.importorskip("torchrl.modules", reason="torchrl is not installed")
    from tensordict import TensorDict

    layer = getattr(nn, name)(I, H, batch_first=True)
    states = ["h", "c"] if name == "LSTM" else ["h"]
    keys = {
        "in_keys": ["x", *states],
        "out_keys": ["y", *(("next", s) for s in states)],
    }
    make = getattr(modules, f"{name}Module")
    theirs = make(**{name.lower(): layer}, **keys)
    ours = make(**{name.lower(): rnnfast.replace(copy.deepcopy(layer)).model}, **keys)
    given = TensorDict(
        {
            "x": torch.randn(B, T, I),
            "is_init": torch.rand(B, T, 1) < 0.3,
            **{s: torch.zeros(B, T, 1, H) for s in states},
        },
        [B, T],
    )
    with modules.set_recurrent_mode(True):
        expected, found = (module(given.clone()) for module in (theirs, ours))
    torch.testing.assert_close(found["y"], expected["y"])
    step = given[:, 0]
    torch.testing.assert_close(ours(step.clone())["y"], theirs(step.clone())["y"])
