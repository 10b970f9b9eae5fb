"""NNI's evaluators with today's Lightning and Transformers: each pruner runs on each, and each repair is needed."""

from types import SimpleNamespace

import evaluators
import pytest
import torch
import torch.nn.functional as F
import transformers
from nni.compression import pruning
from nni.compression.utils import evaluator as nni_evaluator
from torch import nn
from torch.utils.data import DataLoader

from nni_sparsevd.plugins.nni import compatibility, learning

MAKERS = [evaluators.torch_evaluator, evaluators.lightning_evaluator, evaluators.transformers_evaluator]
STEPS = 20

CONVOLUTION = [{"op_types": ["Conv2d"], "target_names": ["weight"], "sparse_ratio": 0.5}]
LINEAR = [{"op_types": ["Linear"], "target_names": ["weight"], "sparse_ratio": 0.75}]
NORM = [{"op_types": ["BatchNorm2d"], "target_names": ["weight"], "sparse_ratio": 0.25}]

# how each pruner is built, what its compress() takes, and the share of weights that it is asked to remove
PRUNERS = {
    "taylor": (lambda model, evaluator: pruning.TaylorPruner(model, CONVOLUTION, evaluator, STEPS), (), 0.5),
    "slim": (lambda model, evaluator: pruning.SlimPruner(model, NORM, evaluator, STEPS), (), 0.25),
    "movement": (lambda model, evaluator: pruning.MovementPruner(model, LINEAR, evaluator, 2, 15), (STEPS, None), 0.75),
    "agp": (
        lambda model, evaluator: pruning.AGPPruner(pruning.L1NormPruner(model, CONVOLUTION), 3, 5, evaluator),
        (STEPS, None),
        0.5,
    ),
    "linear": (
        lambda model, evaluator: pruning.LinearPruner(pruning.LevelPruner(model, LINEAR), 3, 5, evaluator),
        (STEPS, None),
        0.75,
    ),
}


@pytest.fixture(autouse=True)
def repairs():
    compatibility.enable()
    yield
    compatibility.disable()


@pytest.fixture
def without(monkeypatch):
    """Leaves one repair out, and puts back the class attributes that NNI then leaves behind."""
    for owner, name in [
        (transformers.Trainer, "get_optimizer_cls_and_kwargs"),
        (nni_evaluator.PatchCallback, "on_train_begin"),
    ]:
        monkeypatch.setattr(owner, name, vars(owner)[name])

    def leave(name):
        compatibility.disable()
        assert name not in compatibility.enable(leave=(name,))

    return leave


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, evaluators.CLASSES)
    return nn.Sequential(*layers)


def removed(masks):
    (targets,) = masks.values()
    return 1 - targets["weight"].mean().item()


def bound(maker, **settings):
    """An evaluator bound to a wrapped network with one more parameter, `extra`."""
    model, evaluator = maker(network(), **settings)
    pruner = pruning.TaylorPruner(model, CONVOLUTION, evaluator, STEPS)
    (wrapper,) = pruner._module_wrappers.values()
    wrapper.register_parameter("extra", nn.Parameter(torch.ones(1)))
    evaluator.bind_model(model, pruner._get_param_names_map())
    return evaluator, wrapper


def slim(maker, **settings):
    model, evaluator = maker(network(), **settings)
    return pruning.SlimPruner(model, NORM, evaluator, STEPS).compress()[1]


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("maker", MAKERS)
def test_every_pruner_runs_on_every_evaluator(maker, pruner):
    build, duration, ratio = PRUNERS[pruner]
    _, masks = build(*maker(network())).compress(*duration)
    assert removed(masks) == pytest.approx(ratio)


@pytest.mark.parametrize("maker", MAKERS)
def test_training_lasts_as_long_as_asked(maker):
    evaluator, _ = bound(maker)
    steps = []
    evaluator.patch_optimizer_step([lambda: steps.append(1)], [])
    evaluator.train(max_steps=7)
    assert len(steps) == 7
    evaluator.train(max_epochs=2)
    assert len(steps) == 7 + 2 * evaluators.STEPS_PER_EPOCH


@pytest.mark.parametrize("maker", MAKERS)
def test_the_small_problem_is_learnt(maker):
    evaluator, _ = bound(maker)
    losses = []
    evaluator.patch_loss(lambda loss, batch: losses.append(loss.item()) or loss)
    evaluator.train(max_steps=STEPS)
    assert losses[0] > 1 and losses[-1] < 0.1


@pytest.mark.parametrize("maker", MAKERS)
def test_tasks_run_around_each_step_in_order(maker):
    evaluator, _ = bound(maker)
    events = []
    for name in "first", "second":
        evaluator.patch_optimizer_step(
            [lambda name=name: events.append(f"before {name}")], [lambda name=name: events.append(f"after {name}")]
        )
    evaluator.train(max_steps=3)
    assert events == 3 * ["before second", "before first", "after first", "after second"]


@pytest.mark.parametrize("maker", MAKERS)
def test_a_parameter_of_the_wrapper_is_trained_once_it_is_in_the_optimizer(maker):
    evaluator, wrapper = bound(maker)
    evaluator.patch_loss(lambda loss, batch: loss + wrapper.extra.sum())
    evaluator.train(max_steps=1)
    assert wrapper.extra.item() == 1
    evaluator.patch_optim_param_group({wrapper.name: [wrapper.extra]})
    evaluator.train(max_steps=1)
    assert wrapper.extra.item() == pytest.approx(1 - evaluators.LEARNING_RATE)


@pytest.mark.parametrize(
    ("maker", "settings"),
    [
        (evaluators.lightning_evaluator, {"accumulate_grad_batches": 2}),
        (evaluators.transformers_evaluator, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.0}),
    ],
)
def test_an_accumulated_step_counts_once(maker, settings):
    evaluator, wrapper = bound(maker, **settings)
    seen, gradients = [], []
    evaluator.patch_optim_param_group({wrapper.name: [wrapper.extra]})
    evaluator.patch_loss(lambda loss, batch: seen.append(1) or loss + wrapper.extra.sum())
    evaluator.patch_optimizer_step([], [lambda: gradients.append(wrapper.extra.grad.item())])
    evaluator.train(max_steps=4)
    assert len(seen) == 8 and gradients == pytest.approx([1] * 4)


class SumOverItems(evaluators.WithLoss):
    """Divides by `num_items_in_batch`, as the language models of Transformers do."""

    def forward(self, images, labels=None, num_items_in_batch=None, **kwargs):
        logits = self.network(images)
        return {"loss": F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch, "logits": logits}


@pytest.mark.parametrize("accumulated", [1, 2, 3])
@pytest.mark.parametrize("kind", [evaluators.WithLoss, SumOverItems])
def test_a_patched_loss_is_a_mean_however_transformers_scales_it(kind, accumulated):
    settings = {"max_grad_norm": 0.0, "gradient_accumulation_steps": accumulated}
    evaluator, wrapper = bound(
        lambda net, **rest: evaluators.transformers_evaluator(net, model=kind(net), **rest), **settings
    )
    losses, gradients = [], []
    evaluator.patch_loss(lambda loss, batch: losses.append(loss.item()) or loss + wrapper.extra.sum())
    evaluator.patch_optimizer_step([lambda: gradients.append(wrapper.extra.grad.item())], [])
    evaluator.train(max_steps=4)
    assert gradients == pytest.approx([1] * 4)
    plain, _ = bound(evaluators.transformers_evaluator, **settings)
    means = []
    plain.patch_loss(lambda loss, batch: means.append(loss.item()) or loss)
    plain.train(max_steps=1)
    assert losses[:accumulated] == pytest.approx(means)


@pytest.mark.parametrize("own_optimizer", [True, False])
def test_nothing_of_the_hosts_is_changed_by_compress(own_optimizer):
    trainer_class = dict(vars(transformers.Trainer))
    callback_class = dict(vars(nni_evaluator.PatchCallback))
    model, evaluator = evaluators.transformers_evaluator(network(), own_optimizer=own_optimizer)
    trainer = evaluator.traced_trainer
    settings, callbacks = trainer.args.to_dict(), list(trainer.callback_handler.callbacks)
    pruning.MovementPruner(model, LINEAR, evaluator, 2, 15).compress(STEPS, None)
    assert dict(vars(transformers.Trainer)) == trainer_class
    assert dict(vars(nni_evaluator.PatchCallback)) == callback_class
    assert trainer.args.to_dict() == settings and trainer.callback_handler.callbacks == callbacks
    assert "get_optimizer_cls_and_kwargs" not in vars(trainer) and "compute_loss" not in vars(trainer)

    model, evaluator = evaluators.lightning_evaluator(network())
    pruning.MovementPruner(model, LINEAR, evaluator, 2, 15).compress(STEPS, None)
    assert model.training_step.__func__ is evaluators.Classifier.training_step
    assert model.configure_optimizers.__func__ is evaluators.Classifier.configure_optimizers


@pytest.mark.parametrize("flag", ["LIGHTNING_INSTALLED", "TRANSFORMERS_INSTALLED"])
def test_no_repair_without_the_host(flag, monkeypatch):
    compatibility.disable()
    monkeypatch.setattr(nni_evaluator, flag, False)
    host = flag.partition("_")[0].lower()
    assert any(name.startswith(host) for name in compatibility.REPAIRS)
    assert not any(name.startswith(host) for name in compatibility.enable())


def test_lightning_max_steps(without):
    without("lightning_max_steps")
    with pytest.raises(AttributeError, match="no setter"):
        slim(evaluators.lightning_evaluator)


class OnlyBatch(evaluators.Classifier):
    def training_step(self, batch):
        return super().training_step(batch, 0)


def only_batch(net):
    _, evaluator = evaluators.lightning_evaluator(net)
    return OnlyBatch(net), evaluator


def test_lightning_training_step(without):
    assert removed(slim(only_batch)) == pytest.approx(0.25)
    evaluator, _ = bound(only_batch)
    for _ in range(2):
        evaluator.patch_loss(lambda loss, batch: 2 * loss)
    evaluator.train(max_steps=1)
    without("lightning_training_step")
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        slim(only_batch)


def test_transformers_default_optimizer(without):
    assert removed(slim(evaluators.transformers_evaluator, own_optimizer=False)) == pytest.approx(0.25)
    without("transformers_default_optimizer")
    with pytest.raises(TypeError, match="get_optimizer_cls_and_kwargs"):
        slim(evaluators.transformers_evaluator, own_optimizer=False)


def test_transformers_loss(without):
    without("transformers_loss")
    with pytest.raises(TypeError, match="num_items_in_batch"):
        slim(evaluators.transformers_evaluator)


def test_transformers_step_tasks(without):
    without("transformers_step_tasks")
    with pytest.raises(AssertionError):
        slim(evaluators.transformers_evaluator)


def test_transformers_bound_optimizer(without):
    def train_again():
        evaluator, _ = bound(evaluators.transformers_evaluator)
        steps = []
        evaluator.patch_optimizer_step([lambda: steps.append(1)], [])
        evaluator.train(max_steps=2)
        evaluator.revert_optimizer_step()
        evaluator.train(max_steps=3)
        return len(steps)

    assert train_again() == 2
    without("transformers_bound_optimizer")
    with pytest.raises(AttributeError, match="AcceleratedOptimizer"):
        train_again()


def test_a_lightning_loader_without_a_data_set_has_no_known_size():
    trainer = SimpleNamespace(train_dataloader=[torch.zeros(2, 3)])
    evaluator = object.__new__(nni_evaluator.LightningEvaluator)
    evaluator.model = SimpleNamespace(trainer=trainer)
    assert learning._known_size(evaluator) is None
    trainer.train_dataloader = DataLoader(range(7))
    assert learning._known_size(evaluator) == 7
