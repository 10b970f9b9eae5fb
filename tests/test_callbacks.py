"""Sparse VD in trainings of Lightning and of Hugging Face's Trainer: they learn what a loop by hand learns."""

import copy
import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning
import torch
import transformers
from points import BATCH, EPOCHS, RATE, SAMPLES, SETTINGS, STEPS, Network, Points, train_rank
from processes import run_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import nni_sparsevd as svd
from nni_sparsevd.errors import FileFormatError, ModelError, SettingError, SparseVDWarning
from nni_sparsevd.nn import is_variational
from nni_sparsevd.plugins import lightning as for_lightning
from nni_sparsevd.plugins import transformers as for_transformers
from nni_sparsevd.regularize import Regularizer


class Endless(IterableDataset[dict[str, Tensor]]):
    """The same, of unknown length."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter([Points()[index] for index in range(SAMPLES)])


class Module(pytorch_lightning.LightningModule):
    """The same, as Lightning wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        torch.manual_seed(self.global_step)
        return self.network(**batch)["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), RATE)


def seeded(network: Network, first: int) -> Network:
    """Draw the noise of each step from a seed of its own, as the others do."""
    count = itertools.count(first)
    network.register_forward_pre_hook(lambda *_: torch.manual_seed(next(count)) and None)
    return network


def by_hand(steps: int = STEPS) -> Network:
    """What both have to arrive at: SGD on the weights, Adam on the variances, the KL in between."""
    network = Network()
    regularizer = Regularizer(network, SETTINGS)
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    data = Points()
    for step in range(steps):
        rows = [(step * BATCH + place) % SAMPLES for place in range(BATCH)]
        torch.manual_seed(step)
        optimizer.zero_grad()
        network(data.x[rows], data.y[rows])["loss"].backward()
        regularizer.regularize(step / STEPS, SAMPLES)
        optimizer.step()
    return network


def assert_same(learned: nn.Module, expected: nn.Module) -> None:
    expected_state = expected.state_dict()
    assert list(learned.state_dict()) == list(expected_state)
    torch.testing.assert_close(dict(learned.state_dict()), dict(expected_state), rtol=1e-5, atol=1e-6)


def lightning(folder: Path, kind: type[Module] = Module, **options: Any) -> tuple[Module, pytorch_lightning.Trainer]:
    module = kind()
    callback = for_lightning.SparseVDCallback(module.network, options.pop("settings", SETTINGS))
    trainer = pytorch_lightning.Trainer(
        **({"max_epochs": EPOCHS} | options),
        callbacks=[callback],
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    return module, trainer


def loader(data: Dataset[Any]) -> DataLoader[Any]:
    return DataLoader(data, BATCH)


def huggingface(
    folder: Path, data: Dataset[Any] | None = None, first: int = 0, **options: Any
) -> tuple[Network, transformers.Trainer]:
    network = seeded(Network(), first)
    callback = for_transformers.SparseVDCallback(network, options.pop("settings", SETTINGS))
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        **({"num_train_epochs": EPOCHS, "save_strategy": "no", "logging_steps": 4} | options),
    )
    trainer = transformers.Trainer(network, arguments, train_dataset=data or Points(), callbacks=[callback])
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(Points())  # type: ignore[method-assign]
    return network, trainer


def test_lightning_learns_what_a_loop_by_hand_learns(tmp_path: Path) -> None:
    module, trainer = lightning(tmp_path)
    trainer.fit(module, loader(Points()))
    assert_same(module.network, by_hand())
    assert 0 < float(trainer.callback_metrics["sparsevd_sparsity"]) < 1 and trainer.callback_metrics["sparsevd_kl"] > 0
    small, _ = svd.shrink(module.network.body.eval(), torch.randn(2, 8))
    assert not is_variational(small)


def test_huggingface_learns_what_a_loop_by_hand_learns(tmp_path: Path) -> None:
    network, trainer = huggingface(tmp_path)
    trainer.train()
    assert_same(network, by_hand())
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == STEPS // 4 and all(row["sparsevd_kl"] > 0 for row in logged)
    assert 0 < logged[-1]["sparsevd_sparsity"] < 1


def test_an_optimizer_can_bring_it_along() -> None:
    network = Network()
    regularizer = Regularizer(network, SETTINGS.model_copy(update={"n_train": SAMPLES}))
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    regularizer.attach_(optimizer, STEPS)
    for step, batch in enumerate(batch for _ in range(EPOCHS) for batch in loader(Points())):
        optimizer.zero_grad()
        torch.manual_seed(step)
        network(**batch)["loss"].backward()
        optimizer.step()
    assert_same(network, by_hand())


def test_two_processes_stay_one_network(tmp_path: Path) -> None:
    """As if one process had drawn both noises: gradients are means over processes, and the KL is added once."""
    run_ranks(2, train_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    network, data = Network(), Points()
    regularizer = Regularizer(network, SETTINGS)
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    for step in range(6):
        optimizer.zero_grad()
        for rank in (0, 1):
            torch.manual_seed(2 * step + rank)
            (network(data.x[rank::2], data.y[rank::2])["loss"] / 2).backward()
        regularizer.regularize(step / 6, SAMPLES)
        optimizer.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(first[name], value)


def test_lightning_resumes_as_if_not_interrupted(tmp_path: Path) -> None:
    class Stop(pytorch_lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    first, trainer = lightning(tmp_path)
    trainer.callbacks.append(Stop())
    trainer.fit(first, loader(Points()))
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    again, trainer = lightning(tmp_path)
    trainer.fit(again, loader(Points()), ckpt_path=tmp_path / "stopped.ckpt")
    assert_same(again.network, by_hand())


def test_huggingface_resumes_as_if_not_interrupted(tmp_path: Path) -> None:
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 8

    _, trainer = huggingface(tmp_path, save_strategy="steps", save_steps=8)
    trainer.add_callback(Stop())
    trainer.train()
    assert (tmp_path / "checkpoint-8" / for_transformers.FILE).exists()
    again, trainer = huggingface(tmp_path, first=8)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert_same(again, by_hand())
    (tmp_path / "checkpoint-8" / for_transformers.FILE).unlink()
    _, trainer = huggingface(tmp_path, first=8)
    with pytest.warns(SparseVDWarning, match="starts afresh"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


def test_huggingface_resumes_from_a_checkpoint_that_lies_elsewhere(tmp_path: Path) -> None:
    first, trainer = huggingface(tmp_path / "first", save_strategy="steps", save_steps=8)
    trainer.train()
    checkpoint = str(tmp_path / "first" / "checkpoint-8")
    again, trainer = huggingface(tmp_path / "second", first=8, resume_from_checkpoint=checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert_same(again, first)
    _, trainer = huggingface(tmp_path / "third", first=8)
    with pytest.warns(SparseVDWarning, match="TrainingArguments"):
        trainer.train(resume_from_checkpoint=checkpoint)


class TwoOptimizers(Module):
    """Steps by hand, as adversarial networks do, with an optimizer for the weights of each half."""

    automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], index: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.network(**batch)["loss"])
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        weights = list(self.parameters())
        return [torch.optim.SGD(weights[:2], RATE), torch.optim.SGD(weights[2:], RATE)]


@pytest.mark.parametrize(("options", "last"), [({}, (STEPS - 1) / STEPS), ({"max_steps": STEPS}, (STEPS - 2) / STEPS)])
def test_progress_ends_with_the_training_of_several_optimizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], last: float
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(Regularizer, "regularize", lambda self, progress, n_train, **_: seen.append(progress))
    module, trainer = lightning(tmp_path, TwoOptimizers, **options)
    trainer.fit(module, loader(Points()))
    assert seen[0] == 0 and seen[-1] == pytest.approx(last)
    assert seen == sorted(seen)


def test_an_unknown_number_of_samples_is_said(tmp_path: Path) -> None:
    known = SETTINGS.model_copy(update={"n_train": SAMPLES})
    module, trainer = lightning(tmp_path, max_steps=4)
    with pytest.raises(SettingError, match="n_train"):
        trainer.fit(module, loader(Endless()))
    module, trainer = lightning(tmp_path, max_steps=4, settings=known)
    trainer.fit(module, loader(Endless()))
    _, trainer = huggingface(tmp_path, Endless(), max_steps=4)
    with pytest.raises(SettingError, match="n_train"):
        trainer.train()
    huggingface(tmp_path, Endless(), max_steps=4, settings=known)[1].train()


def test_lightning_without_an_end_is_refused(tmp_path: Path) -> None:
    module, trainer = lightning(tmp_path, max_epochs=-1)
    with pytest.raises(SettingError, match="max_steps or max_epochs"):
        trainer.fit(module, loader(Points()))


def test_states_of_other_networks_are_refused() -> None:
    network = Network()
    source, target = Regularizer(network, SETTINGS), Regularizer(nn.Linear(3, 2), SETTINGS)
    network.body(torch.randn(4, 8)).sum().backward()
    source.regularize(0.5, SAMPLES)
    with pytest.raises(FileFormatError, match=r"other variances: 0\.exp_avg"):
        target.load_state_(source.state())
    with pytest.raises(FileFormatError, match="other variances"):
        target.load_state_({"weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="variational already"):
        Regularizer(network, SETTINGS)
    saved = copy.deepcopy(source.state())
    source.load_state_(saved)
    assert all(torch.equal(value, saved[name]) for name, value in source.state().items())


@pytest.mark.parametrize(("host", "package"), [("lightning", "pytorch_lightning"), ("transformers", "transformers")])
def test_a_missing_host_gives_the_command(monkeypatch: pytest.MonkeyPatch, host: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"nni_sparsevd.plugins.{host}")
    with pytest.raises(SettingError, match=rf"{package}.*pip install 'nni_sparsevd\[evaluators\]'"):
        importlib.import_module(f"nni_sparsevd.plugins.{host}")


@pytest.mark.parametrize("host", ["lightning", "huggingface"])
def test_a_callback_for_another_network_is_named(host: str, tmp_path: Path) -> None:
    if host == "lightning":
        _, trainer = lightning(tmp_path)
        with pytest.warns(SparseVDWarning, match="train the very network that has the posteriors"):
            trainer.fit(Module(), loader(Points()))
    else:
        _, other = huggingface(tmp_path)
        other.model = other.model_wrapped = Network()
        with pytest.warns(SparseVDWarning, match="train the very network that has the posteriors"):
            other.train()


@pytest.fixture
def loss_scales(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The factors with which callbacks call their regularizer, which does nothing."""
    seen: list[float] = []
    monkeypatch.setattr(Regularizer, "regularize", lambda *_, loss_scale: seen.append(loss_scale))
    return seen


def backpropagate_scaled(network: nn.Module) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(sum(parameter.sum() for parameter in network.parameters())).backward()
    return scaler


@pytest.mark.parametrize(("clips", "expected"), [(False, 1024.0), (True, 1.0)])
def test_the_kl_is_scaled_where_the_trainer_leaves_gradients_scaled(
    clips: bool, expected: float, loss_scales: list[float]
) -> None:
    network = Network()
    callback = for_transformers.SparseVDCallback(network, SETTINGS)
    optimizer = torch.optim.Adam(network.parameters())
    scaler = backpropagate_scaled(network)
    if clips:  # the Trainer has Accelerate clip, which divides first
        scaler.unscale_(optimizer)
    arguments: Any = SimpleNamespace()
    state: Any = SimpleNamespace(global_step=1, max_steps=2)
    control: Any = None
    wrapped = SimpleNamespace(optimizer=optimizer, scaler=scaler)
    callback.on_pre_optimizer_step(arguments, state, control, train_dataloader=None, optimizer=wrapped)
    assert loss_scales == [expected]


@pytest.mark.parametrize(("fused", "expected"), [(True, 1024.0), (False, 1.0)])
def test_the_kl_is_scaled_where_lightning_leaves_gradients_scaled(
    fused: bool, expected: float, loss_scales: list[float]
) -> None:
    network = Network()
    callback = for_lightning.SparseVDCallback(network, SETTINGS)
    optimizer = torch.optim.Adam(network.parameters(), fused=fused)
    scaler = backpropagate_scaled(network)
    if not fused:  # Lightning divides, except for an optimizer that does it by itself
        scaler.unscale_(optimizer)
    trainer: Any = SimpleNamespace(
        optimizers=[optimizer],
        global_step=0,
        max_steps=-1,
        estimated_stepping_batches=4,
        train_dataloader=None,
        precision_plugin=SimpleNamespace(scaler=scaler),
    )
    module: Any = None
    callback.on_before_optimizer_step(trainer, module, optimizer)
    assert loss_scales == [expected]
