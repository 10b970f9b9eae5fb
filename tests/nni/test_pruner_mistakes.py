"""What a script of NNI gets wrong is refused or named, and is never silently something else."""

import copy

import nni
import pytest
import torch
import torch.nn.functional as F
from nni.compression.utils import TorchEvaluator
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import MaskError, ModelError, SettingError, SparseVDWarning
from nni_sparsevd.plugins.nni import ExactSpeedup, SparseVDPruner, SparseVDSettings, trace

IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(4, (16,), generator=torch.Generator().manual_seed(1))
HALF = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))


def train(model, optimizer, training_step, lr_scheduler=None, max_steps=None, max_epochs=None):
    model.train()
    for _ in range(max_steps or 4 * max_epochs):
        optimizer.zero_grad()
        training_step((IMAGES, LABELS), model).backward()
        optimizer.step()


def train_in_evaluation_mode(model, optimizer, training_step, lr_scheduler=None, max_steps=None, max_epochs=None):
    def without_noise(batch, model):
        return training_step(batch, model.eval())

    train(model, optimizer, without_noise, lr_scheduler, max_steps, max_epochs)


def train_by_itself(model, optimizer, training_step, lr_scheduler=None, max_steps=None, max_epochs=None):
    train(model, optimizer, loss_of, lr_scheduler, max_steps, max_epochs)


def train_not_at_all(model, optimizer, training_step, lr_scheduler=None, max_steps=None, max_epochs=None):
    pass


def loss_of(batch, model):
    return F.cross_entropy(model(batch[0]), batch[1])


def made(model, training=train, config=HALF, steps=8, n_train=16, **options):
    optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=1e-3)
    evaluator = TorchEvaluator(training, optimizer, loss_of, dummy_input=IMAGES[:2])
    settings = SparseVDSettings(n_train=n_train, learning_rate=0.05)
    return SparseVDPruner(model, copy.deepcopy(config), evaluator, steps, **{"settings": settings, **options})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "training_steps = 0 has to be a whole number of at least 1"),
        ({"steps": -5}, "training_steps = -5"),
        ({"steps": 12.5}, "training_steps = 12.5"),
        ({"settings": {"n_train": 16}}, "settings has to be a SparseVDSettings"),
        ({"config": HALF[0]}, "config_list: a list of dictionaries, found dict"),
        ({"config": []}, "config_list: no entry selects anything"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(arguments, message):
    model = network()
    with pytest.raises(SettingError, match=message):
        made(model, **arguments)
    assert not any(hasattr(module, "_nni_wrapper") for module in model.modules())


def test_an_evaluator_is_not_a_function():
    with pytest.raises(SettingError, match="evaluator has to be an Evaluator of NNI, found <function train"):
        SparseVDPruner(network(), HALF, train)


@pytest.mark.parametrize("length", [{"max_steps": 0}, {"max_epochs": 0}, {"max_epochs": 1.5}])
def test_a_training_of_no_length_is_refused(length):
    with pytest.raises(SettingError, match=f"{next(iter(length))} = .* has to be a whole number of at least 1"):
        made(network(), steps=None).compress(**length)


def test_a_network_that_is_wrapped_or_has_posteriors_is_refused():
    model = network()
    made(model)
    with pytest.raises(ModelError, match="0 is still wrapped by an earlier pruner: call its unwrap_model"):
        made(model)
    for settings in ({}, {"granularity": "gate", "example_inputs": IMAGES[:2]}):
        variational = svd.sparsify_(network(), **settings)
        with pytest.raises(ModelError, match="has posteriors already; bake_ it first"):
            made(variational)
        with pytest.raises(ModelError, match="has posteriors: bake_ it first"):
            ExactSpeedup(variational, IMAGES[:2], {})


def test_an_unwrapped_network_cannot_learn():
    pruner = made(network())
    pruner.unwrap_model()
    with pytest.raises(ModelError, match="unwrapped, and no masks are made yet"):
        pruner.compress()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (train_not_at_all, "has never called the training_step"),
        (train_by_itself, "has never called the training_step"),
        (train_in_evaluation_mode, "trains in evaluation mode"),
    ],
)
@pytest.mark.parametrize("epochs", [None, 2])
def test_a_training_in_which_the_posterior_learns_nothing_is_named(training, message, epochs):
    pruner = made(network(), training, steps=None if epochs else 8)
    with pytest.warns(SparseVDWarning, match=message):
        pruner.compress(None, epochs)


def test_epochs_of_fewer_steps_than_the_samples_say_are_named():
    pruner = made(network(), steps=None, n_train=160)  # ten batches, of which the training function takes four
    with pytest.warns(SparseVDWarning, match="ended after 8 of 20 steps"):
        pruner.compress(None, 2)


def test_a_loop_of_ones_own_without_the_kl_is_named():
    model = network()
    pruner = SparseVDPruner(model, copy.deepcopy(HALF))
    train(model, torch.optim.Adam(model.parameters(), 1e-2), loss_of, max_steps=8)
    with pytest.warns(SparseVDWarning, match=r"train the wrapped model on loss \+ pruner.kl\(\)"):
        pruner.compress()


def test_masks_that_remove_nothing_are_named():
    pruner = made(network(), config=[{"op_types": ["Conv2d"], "sparse_ratio": 1e-6}])
    with pytest.warns(SparseVDWarning, match="the masks remove nothing"):
        model, masks = pruner.compress()
    pruner.unwrap_model()
    with pytest.warns(SparseVDWarning, match="ExactSpeedup: no channel was removed"):
        ExactSpeedup(model, IMAGES[:2], masks).speedup_model()


def test_an_expression_that_matches_nothing_is_named():
    entry = {"op_types": ["Conv2d"], "exclude_op_names_re": ["layer3.*"], "sparse_ratio": 0.5}
    with pytest.warns(SparseVDWarning, match=r"config_list\[0\].exclude_op_names_re: 'layer3.\*' matches no module"):
        made(network(), config=[entry])


def test_variances_in_half_precision_are_named():
    pruner = made(network().bfloat16())
    evaluator = pruner.evaluator
    evaluator._training_step = lambda batch, model: loss_of((batch[0].bfloat16(), batch[1]), model)
    with pytest.warns(SparseVDWarning, match="half precision"):
        pruner.compress()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"0": torch.ones(8)}, "masks: 0: {target: tensor}, found Tensor"),
        ({"0": {"weight": [1, 0]}}, "masks: 0.weight: a tensor of 0 and 1, found list"),
    ],
)
def test_masks_of_another_form_are_refused(masks, message):
    with pytest.raises(MaskError, match=message):
        ExactSpeedup(network(), IMAGES[:2], masks)


def test_a_trace_needs_inputs():
    with pytest.raises(SettingError, match="dummy_input has to hold tensors, found None"):
        trace(network(), None)
