"""Distillation: the loss is the published one, and the teacher decides what a network learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import nn

from nni_sparsevd.data import load_data
from nni_sparsevd.errors import ModelError
from nni_sparsevd.recipe import DataSettings, FinetuneStage, ModelSettings, Recipe, SparseStage, Stage, TeacherSettings
from nni_sparsevd.settings import PosteriorSettings
from nni_sparsevd.training import compress, loop
from nni_sparsevd.training.compression import _create_teacher
from nni_sparsevd.training.teacher import Teacher


def recipe(**parts: Any) -> Recipe:
    values = {
        "model": ModelSettings(arguments={"hidden": [30, 20]}),
        "data": DataSettings(batch_size=50, limit=400),
        "dense": Stage(epochs=1),
        "sparse": SparseStage(epochs=1, kl_coefficient=0.01),
        "finetune": FinetuneStage(epochs=1),
    }
    return Recipe(**{**values, **parts})


def test_the_joint_loss_is_that_of_hinton_and_others() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)).double()
    inputs, labels = torch.randn(6, 5, dtype=torch.float64), torch.randint(4, (6,))
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    teacher = Teacher(network, TeacherSettings(weight=0.3, temperature=4.0), torch.device("cpu"))
    on_labels = F.cross_entropy(logits.float(), labels)
    joint = teacher.join(on_labels, logits, inputs)
    soft = (network[0](inputs) / 4).softmax(1)  # in evaluation mode: no dropout
    student = (logits / 4).softmax(1)
    distance = (soft * (soft / student).log()).sum(1).mean()
    assert float(joint) == pytest.approx(float(0.7 * on_labels + 0.3 * 16 * distance), rel=1e-5)
    joint.backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_student_of_its_own_answers_has_nothing_to_learn_from_the_teacher() -> None:
    network, inputs = nn.Linear(5, 4), torch.randn(6, 5)
    teacher = Teacher(network, TeacherSettings(weight=1.0), torch.device("cpu"))
    logits = network(inputs)
    joint = teacher.join(torch.tensor(9.0), logits, inputs)
    assert abs(float(joint)) < 1e-6


def test_with_nothing_but_the_teacher_labels_do_not_matter(tmp_path: Path) -> None:
    """Random labels in the later stages change nothing where the teacher has the whole loss; its answers do."""
    posterior = PosteriorSettings(init_log_sigma2=-30.0)
    stages = {"dense": Stage(), "sparse": SparseStage(epochs=2, kl_coefficient=0.0), "posterior": posterior}
    plain = {"batch_size": 50, "limit": 400}
    weights = []
    for name, data in (("true", DataSettings(**plain)), ("random", DataSettings(random_labels=True, **plain))):
        settings = recipe(**stages, data=data, finetune=FinetuneStage(), teacher=TeacherSettings(weight=1.0))
        weights.append(compress(settings, tmp_path / name, []).masked.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    other = recipe(**stages, finetune=FinetuneStage(), teacher=TeacherSettings(weight=0.5))
    joint = compress(other, tmp_path / "half", []).masked.state_dict()
    assert not all(torch.equal(weights[0][name], joint[name]) for name in joint)


def test_a_resumed_run_has_the_same_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe(teacher=TeacherSettings(weight=0.5))
    whole = compress(settings, tmp_path / "whole", []).masked.state_dict()
    steps = 0
    join = Teacher.join

    def stop_in_the_finetuning(teacher: Teacher, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 10:  # 7 steps an epoch: in the second stage that has a teacher
            raise KeyboardInterrupt
        return join(teacher, *arguments)

    monkeypatch.setattr(Teacher, "join", stop_in_the_finetuning)
    with pytest.raises(KeyboardInterrupt):
        compress(settings, tmp_path / "run", [])
    monkeypatch.undo()
    resumed = compress(settings, tmp_path / "run", [], resume=True).masked.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_another_network_may_teach_every_stage(tmp_path: Path) -> None:
    teacher = TeacherSettings(weight=1.0, name="lenet_300_100", arguments={"hidden": [10, 10]})
    taught = compress(recipe(teacher=teacher, sparse=SparseStage(epochs=0)), tmp_path / "run", []).dense.state_dict()
    alone = compress(recipe(sparse=SparseStage(epochs=0)), tmp_path / "alone", []).dense.state_dict()
    assert not torch.equal(taught["fc1.weight"], alone["fc1.weight"])


def test_a_teacher_that_does_not_take_these_images_is_found_out_at_once(tmp_path: Path) -> None:
    teacher = TeacherSettings(weight=0.5, name="vit_tiny_patch16_224", arguments={"img_size": 32})
    with pytest.raises(ModelError, match=r"the teacher vit_tiny_patch16_224 does not run on images of 1x8x8"):
        compress(recipe(teacher=teacher), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


def test_a_teacher_sees_images_as_in_its_own_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = DataSettings(batch_size=50, limit=400, mean=(0.4,), std=(0.2,))
    made = compress(recipe(data=data, sparse=SparseStage(epochs=0)), tmp_path / "run", [])
    settings = TeacherSettings(
        name="lenet_300_100",
        arguments={"hidden": [30, 20]},
        checkpoint=tmp_path / "run" / "dense.safetensors",
        weight=0.5,
    )
    other = load_data(DataSettings(limit=400))
    assert other.preprocessing.mean != (0.4,)
    teacher = _create_teacher(recipe(teacher=settings), other, other.make_example_inputs())
    assert teacher is not None
    images = other.train.read(range(20))
    expected = made.dense(made.data.normalize(images))
    torch.testing.assert_close(teacher.eval()(other.normalize(images)), expected)
    assert not torch.allclose(made.dense(other.normalize(images)), expected, atol=0.01)
    same = _create_teacher(recipe(teacher=settings), made.data, made.example_inputs)
    assert type(same) is type(made.dense)  # nothing is put before a network that expects what it gets
    assert "teaches noise" not in capsys.readouterr().err


def test_a_teacher_that_has_learned_nothing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    PartialState()
    data = load_data(DataSettings(limit=400))
    _create_teacher(recipe(teacher=TeacherSettings(name="lenet_300_100", weight=0.5)), data, data.make_example_inputs())
    assert "teacher.name = 'lenet_300_100': its classifier starts from nothing" in capsys.readouterr().err


def test_gates_keep_their_rate_where_fine_tuning_has_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    build = loop.build_optimizer

    def record(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
        optimizer = build(model, stage)
        rates.append(max(group["scale"] for group in optimizer.param_groups))
        return optimizer

    monkeypatch.setattr(loop, "build_optimizer", record)
    settings = recipe(
        dense=Stage(),
        posterior=PosteriorSettings(granularity="both"),
        sparse=SparseStage(epochs=1, kl_coefficient=0.01, gate_rate=3.0),
        finetune=FinetuneStage(epochs=1, variational=True),
    )
    compress(settings, tmp_path / "run", [])
    assert rates == [3.0, 3.0]
