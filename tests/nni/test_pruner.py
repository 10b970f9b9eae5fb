"""What `SparseVDPruner` decides, learns and leaves behind."""

import copy
import math
import warnings
from collections import UserDict
from dataclasses import dataclass

import nni
import pytest
import torch
import torch.nn.functional as F
from evaluators import BATCH, SAMPLES, lightning_evaluator, network, torch_evaluator, transformers_evaluator
from nni.compression import TorchEvaluator, pruning
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import SparseVDWarning
from nni_sparsevd.plugins.nni import SparseVDPruner, SparseVDSettings
from nni_sparsevd.plugins.nni.learning import Learning

CONVOLUTIONS = {"op_types": ["Conv2d"]}
WEIGHTS = {"granularity": [1]}


def settings(**posterior):
    return SparseVDSettings(n_train=SAMPLES, learning_rate=0.1, gate_rate=1.0, posterior=posterior)


def with_posterior(entry, model=None, **posterior):
    """A pruner whose log sigma^2 are drawn at random instead of learnt."""
    model = model or network()
    pruner = SparseVDPruner(model, [entry] if isinstance(entry, dict) else entry, settings=settings(**posterior))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("log_sigma2"):
                parameter.copy_(torch.empty(parameter.shape).uniform_(-9, 0, generator=generator))
    return pruner


def weight_of(pruner, name="0"):
    return pruner._module_wrappers[name].weight.detach().double()


def log_sigma2_of(pruner, name="0"):
    return pruner._module_wrappers[name].weight_log_sigma2.detach().double()


# The decision, from a posterior that is given.


def test_it_decides_by_log_alpha_3_without_ratio_and_threshold():
    pruner = with_posterior(CONVOLUTIONS)
    expected = log_sigma2_of(pruner) - weight_of(pruner).square().log() < 3
    torch.testing.assert_close(
        pruner.log_alpha()["0"]["weight"], log_sigma2_of(pruner) - weight_of(pruner).square().log()
    )
    _, masks = pruner.compress()
    assert torch.equal(masks["0"]["weight"].bool(), expected)
    assert 0.05 < expected.double().mean() < 0.95
    assert torch.equal(masks["0"]["bias"], torch.ones(8))  # a row without weights still adds its bias


def test_another_threshold():
    pruner = with_posterior(CONVOLUTIONS, threshold=1.0)
    expected = pruner.log_alpha()["0"]["weight"] < 1
    assert torch.equal(pruner.compress()[1]["0"]["weight"].bool(), expected)


def test_the_metric_is_the_signals_share_of_the_power():
    pruner = with_posterior(CONVOLUTIONS)
    metric = pruner._calculate_metrics(pruner._collect_data())["3"]["weight"]
    signal, noise = weight_of(pruner, "3").square(), log_sigma2_of(pruner, "3").exp()
    torch.testing.assert_close(metric, signal / (signal + noise))


@pytest.mark.parametrize(
    ("granularity", "dims", "shape"),
    [
        ("out_channel", (1, 2, 3), (8, 1, 1, 1)),
        ("in_channel", (0, 2, 3), (1, 8, 1, 1)),
        ([1, 3, 3], (2, 3), (8, 8, 1, 1)),
    ],
)
def test_blocks_are_ranked_by_their_summed_signal_and_noise(granularity, dims, shape):
    pruner = with_posterior({"op_names": ["3"], "granularity": granularity, "sparse_ratio": 0.5})
    signal = weight_of(pruner, "3").square().sum(dims, keepdim=True)
    noise = log_sigma2_of(pruner, "3").exp().sum(dims, keepdim=True)
    found = pruner.log_alpha()["3"]["weight"]
    assert found.shape == shape
    torch.testing.assert_close(found, (noise / signal).log())
    kept = (pruner.compress()[1]["3"]["weight"] != 0).double().mean(dims, keepdim=True)
    assert set(kept.unique().tolist()) == {0.0, 1.0} and kept.mean() == 0.5
    assert found[kept == 1].max() < found[kept == 0].min()


@pytest.mark.parametrize(
    ("keys", "sparsity"),
    [
        ({"sparse_ratio": 0.75}, 0.75),
        ({"sparse_ratio": 0.75, "max_sparse_ratio": 0.5}, 0.5),
        ({"sparse_ratio": 0.25, "min_sparse_ratio": 0.5}, 0.5),
        ({"sparse_ratio": 0.0}, 0.0),
        ({"max_sparse_ratio": 0.125}, 0.125),
        ({"min_sparse_ratio": 0.875}, 0.875),
        ({"sparse_threshold": 0.0}, 0.0),
        ({"sparse_threshold": 1.0, "max_sparse_ratio": 0.5}, 0.5),
        ({"target_settings": {"weight": {"sparse_ratio": 0.5}}}, 0.5),
        ({"target_names": ["weight"], "sparse_ratio": 0.5}, 0.5),
        ({"sparse_ratio": 0.5, "apply_method": "bypass"}, 0.5),
    ],
)
def test_keys_of_sparsity(keys, sparsity):
    _, masks = with_posterior({"op_names": ["3"], **keys}).compress()
    assert 1 - masks["3"]["weight"].mean().item() == pytest.approx(sparsity, abs=1 / 576)


def test_a_threshold_in_nnis_terms_is_one_on_log_alpha():
    pruner = with_posterior({**CONVOLUTIONS, **WEIGHTS, "sparse_threshold": 0.25})
    expected = pruner.log_alpha()["0"]["weight"] <= math.log(3)  # 1 / (1 + alpha) >= 1/4
    assert torch.equal(pruner.compress()[1]["0"]["weight"].bool(), expected)


def test_a_global_group_shares_its_ratio():
    pruner = with_posterior({**CONVOLUTIONS, **WEIGHTS, "sparse_ratio": 0.5, "global_group_id": "all"})
    relevance = torch.cat([value["weight"].flatten() for value in pruner.log_alpha().values()])
    _, masks = pruner.compress()
    kept = torch.cat([masks[name]["weight"].flatten() for name in pruner.log_alpha()]).bool()
    assert kept.double().mean() == pytest.approx(0.5, abs=0.01)
    assert relevance[kept].max() <= relevance[~kept].min()
    assert masks["0"]["weight"].mean() != masks["3"]["weight"].mean()


@pytest.mark.parametrize("keys", [{"sparse_ratio": 0.5}, {}])
def test_a_dependency_group_decides_as_one(keys):
    entries = [{"op_names": ["0"], "dependency_group_id": "g", **keys}, {"op_names": ["3"], "dependency_group_id": "g"}]
    pruner = with_posterior(entries, threshold=2.6)
    signal = sum(weight_of(pruner, name).square().sum((1, 2, 3)) for name in "03")
    noise = sum(log_sigma2_of(pruner, name).exp().sum((1, 2, 3)) for name in "03")
    expected = (noise / signal).log()
    for name in "03":
        torch.testing.assert_close(pruner.log_alpha()[name]["weight"].flatten(), expected)
    _, masks = pruner.compress()
    kept = masks["0"]["weight"][:, 0, 0, 0].bool()
    assert torch.equal(kept, masks["3"]["weight"][:, 0, 0, 0].bool())
    assert torch.equal(kept, masks["0"]["bias"].bool())  # removed channels take their bias along
    assert torch.equal(kept, expected < (expected.sort().values[4] if keys else 2.6))


def test_internal_blocks_of_a_dependency_group_lose_alike():
    entry = {**CONVOLUTIONS, "dependency_group_id": 1, "internal_metric_block": 2, "sparse_ratio": 0.5}
    _, masks = with_posterior(entry).compress()
    kept = masks["0"]["weight"][:, 0, 0, 0]
    assert kept.view(2, 4).sum(1).tolist() == [2, 2]


def test_align_takes_another_mask_over():
    align = {"module_name": "0", "target_name": "weight", "dims": [0]}
    entries = [
        {"op_names": ["0"], "granularity": "out_channel", "sparse_ratio": 0.5},
        {"op_names": ["1"], "target_settings": {"weight": {"align": align}, "bias": {"align": align}}},
    ]
    _, masks = with_posterior(entries).compress()
    assert torch.equal(masks["1"]["weight"], masks["0"]["weight"][:, 0, 0, 0])
    assert torch.equal(masks["1"]["bias"], masks["0"]["bias"])


def test_norms_embeddings_and_transposed_convolutions_have_posteriors_too():
    model = nn.ModuleDict(
        {
            "norm": nn.BatchNorm1d(8),
            "embedding": nn.Embedding(10, 8, padding_idx=0),
            "up": nn.ConvTranspose2d(4, 4, 2),
            "one": nn.Conv1d(4, 4, 3),
        }
    )
    names = ["BatchNorm1d", "Embedding", "ConvTranspose2d", "Conv1d"]
    _, masks = with_posterior({"op_types": names, "sparse_ratio": 0.5}, model).compress()
    assert {name: 1 - targets["weight"].mean().item() for name, targets in masks.items()} == dict.fromkeys(model, 0.5)


def test_a_layer_never_loses_everything_and_is_named():
    model = network()
    pruner = SparseVDPruner(model, [CONVOLUTIONS])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("log_sigma2"):
                parameter.fill_(20.0)
    with pytest.warns(SparseVDWarning, match="all but one block of 0, 3 is removed"):
        _, masks = pruner.compress()
    assert masks["0"]["weight"].sum() == masks["3"]["weight"].sum() == 1
    best = pruner.log_alpha()["3"]["weight"]
    assert best[masks["3"]["weight"].bool()] == best.min()


# Noise while it learns.


@pytest.mark.parametrize("estimator", ["local", "local_bf16", "local_detached", "weight"])
@pytest.mark.parametrize("variance", ["weight", "channel"])
@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 5, 2, groups=1), nn.ConvTranspose1d(6, 5, 2)])
def test_outputs_vary_by_the_posterior_of_what_is_kept(estimator, variance, layer):
    torch.manual_seed(0)
    layer, plain = copy.deepcopy(layer), copy.deepcopy(layer)
    kind, shape = type(layer).__name__, {2: (6,), 3: (6, 4), 4: (6, 4, 4)}[layer.weight.dim()]
    entry = {"op_types": [kind], **WEIGHTS, "sparse_ratio": 0.5}
    pruner = with_posterior(entry, nn.Sequential(layer), estimator=estimator, variance=variance)
    pruner.update_masks(pruner.generate_masks())
    wrapper = layer._nni_wrapper
    x = torch.randn(1, *shape)
    with torch.no_grad():
        if estimator == "weight":  # one sample of the weights serves a whole batch
            samples = torch.cat([layer(x) for _ in range(2000)]).double()
        else:
            samples = layer(x.expand(4000, *shape)).double()
    bias = wrapper.bias.detach()
    kept = {"weight": (wrapper.weight * wrapper.weight_mask).detach(), "bias": bias}
    noise = {"weight": (wrapper.weight_log_sigma2.exp() * wrapper.weight_mask).detach(), "bias": torch.zeros_like(bias)}
    mean = torch.func.functional_call(plain, kept, (x,)).detach().double()
    variance = torch.func.functional_call(plain, noise, (x.square(),)).detach().double()
    assert (samples.mean(0) - mean[0]).abs().max() < 0.15 * variance.sqrt().max()
    assert ((samples.var(0) - variance[0]).abs() < 0.15 * variance[0] + 1e-6).all()
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x).double(), mean)


def test_noise_on_an_embedding_leaves_its_padding_alone():
    torch.manual_seed(0)
    for estimator, variance in (("local", "weight"), ("weight", "weight"), ("local", "channel"), ("weight", "channel")):
        model = nn.Sequential(nn.Embedding(10, 8, padding_idx=0))
        with_posterior({"op_types": ["Embedding"]}, model, estimator=estimator, variance=variance)
        tokens = torch.tensor([[0, 3]])
        first, second = model(tokens), model(tokens)
        # Local noise has a standard deviation of 1e-4 where the variance is 0, for the sake of its gradient.
        assert torch.allclose(first[0, 0], torch.zeros(8), atol=6e-4)
        assert not torch.equal(first[0, 1], second[0, 1])
        assert not hasattr(model[0], "bias")


@pytest.mark.parametrize("variance", ["weight", "channel"])
@pytest.mark.parametrize("keys", [{}, {"sparse_ratio": 0.5}])
def test_the_padding_of_an_embedding_has_no_kl_and_stays(variance, keys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 8, padding_idx=0))
    with torch.no_grad():
        model[0].weight[0] = 1e-4  # from a checkpoint, perhaps
    pruner = with_posterior({"op_types": ["Embedding"], **keys}, model, variance=variance)
    pruner.kl().backward()
    gradient = pruner._module_wrappers["0"].weight.grad
    assert not gradient[0].any() and gradient[1:].all()
    _, masks = pruner.compress()
    assert masks["0"]["weight"][0].all() and not masks["0"]["weight"].all()


# Learning, with NNI's evaluators.


def test_the_objective_is_loss_plus_kl_over_n_after_a_warm_up():
    model, evaluator = torch_evaluator(network())
    losses = []
    original = evaluator._ori_training_step

    def noted(batch, model):
        loss = original(batch, model)
        losses.append(loss.item())
        return loss

    evaluator._ori_training_step = evaluator._training_step = noted
    objectives, divergences = [], []
    train = evaluator.training_func

    def watched(model, optimizer, training_step, *rest):
        def step(batch, model):
            divergences.append(pruner.kl().item())
            loss = training_step(batch, model)
            objectives.append(loss.item())
            return loss

        train(model, optimizer, step, *rest)

    evaluator.training_func = watched
    pruner = SparseVDPruner(
        model, [CONVOLUTIONS], evaluator, 10, settings=SparseVDSettings(n_train=SAMPLES, warmup=0.5)
    )
    pruner.compress(12)
    added = torch.tensor(objectives) - torch.tensor(losses)
    ramp = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 0, 0])  # the last two come after the decision
    torch.testing.assert_close(added, ramp * torch.tensor(divergences) / SAMPLES, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("maker", [torch_evaluator, lightning_evaluator, transformers_evaluator])
@pytest.mark.parametrize(
    ("granularity", "variance"), [("weight", "weight"), ("gate", "weight"), ("both", "weight"), ("both", "channel")]
)
def test_it_learns_with_each_evaluator_and_leaves_an_ordinary_network(maker, granularity, variance):
    model, evaluator = maker(network())
    before = {name: type(module) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    chosen = settings(granularity=granularity, variance=variance)
    pruner = SparseVDPruner(model, [CONVOLUTIONS], evaluator, 40, settings=chosen)
    assert len(list(model.state_dict())) > len(keys)
    learnt, masks = pruner.compress()
    assert learnt is model
    moved = torch.cat([value.flatten() for targets in pruner.log_alpha().values() for value in targets.values()])
    assert moved.isfinite().all() and moved.std() > 0
    assert any(0 < mask["weight"].mean() < 1 for mask in masks.values()) or granularity == "gate"
    assert pruner.compress()[1].keys() == masks.keys()  # asking again changes nothing
    images = torch.randn(5, 1, 8, 8)
    inner = getattr(model, "network", model)
    inner.eval()
    wrapped = inner(images)
    pruner.unwrap_model()
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert sorted(model.state_dict()) == sorted(keys)
    svd.bake_(model, {n: {t: m for t, m in targets.items() if m is not None} for n, targets in masks.items()})
    torch.testing.assert_close(inner(images), wrapped)
    inner.train()
    assert torch.equal(inner(images), inner(images))  # no noise is left


def test_variances_move_under_any_optimizer_and_the_weights_stay_with_it():
    model, evaluator = torch_evaluator(network())
    pruner = SparseVDPruner(model, [CONVOLUTIONS], evaluator, 10, settings=settings())
    evaluator._optimizer_helpers[0].kwargs["lr"] = 0.0
    weight, start = weight_of(pruner).clone(), log_sigma2_of(pruner).clone()
    pruner.compress()
    assert torch.equal(weight_of(pruner), weight)
    assert (pruner.log_alpha()["0"]["weight"] + weight.square().log() - start).abs().min() > 0


def test_gates_silence_what_they_remove_and_speedup_is_exact():
    from nni.compression.speedup import ModelSpeedup

    model, evaluator = torch_evaluator(network())
    entry = {**CONVOLUTIONS, "sparse_ratio": 0.5}
    pruner = SparseVDPruner(model, [entry], evaluator, 20, settings=settings(granularity="gate"))
    _, masks = pruner.compress()
    pruner.unwrap_model()
    dead = masks["0"]["weight"][:, 0, 0, 0] == 0
    assert dead.sum() == 4
    assert not model[1].weight[dead].any() and not model[1].bias[dead].any()
    model.eval()
    x = torch.randn(4, 1, 8, 8)
    before = model(x)
    small = ModelSpeedup(model, x, masks).speedup_model()
    assert small[0].out_channels == 4
    torch.testing.assert_close(small.eval()(x), before)


def test_without_an_evaluator_one_trains_the_wrapped_model_oneself():
    model = network()
    pruner = SparseVDPruner(model, [CONVOLUTIONS])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = torch.randn(32, 1, 8, 8), torch.randint(4, (32,))
    for _ in range(10):
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + pruner.kl() / 32).backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SparseVDWarning)
        pruner.compress()


def test_untrained_it_ranks_by_magnitude_and_says_so():
    model = network()
    with pytest.warns(SparseVDWarning, match="pruning by magnitude"):
        _, masks = SparseVDPruner(model, [{**CONVOLUTIONS, **WEIGHTS, "sparse_ratio": 0.5}]).compress()
    level = pruning.LevelPruner(network(), [{**CONVOLUTIONS, "sparse_ratio": 0.5}])
    for name, targets in level.compress()[1].items():
        assert torch.equal(targets["weight"], masks[name]["weight"])


@pytest.mark.filterwarnings("ignore:.*the size of the training set is not known:nni_sparsevd.errors.SparseVDWarning")
@pytest.mark.parametrize(
    ("maker", "known"),
    [(torch_evaluator, 20 * BATCH), (lightning_evaluator, SAMPLES), (transformers_evaluator, SAMPLES)],
)
def test_the_size_of_the_training_set(maker, known, monkeypatch):
    counted = []
    count = Learning._count_samples
    monkeypatch.setattr(Learning, "_count_samples", lambda *a: counted.append(count(*a)) or counted[-1])
    model, evaluator = maker(network())
    SparseVDPruner(model, [CONVOLUTIONS], evaluator, 20).compress()
    assert counted == [known]


@dataclass
class Batch:
    """A batch of a class of its own, as some collate functions make."""

    images: torch.Tensor
    labels: torch.Tensor


class Closed:
    """A batch that hides what it holds."""

    __slots__ = ("read",)

    def __init__(self, images, labels):
        self.read = lambda: (images, labels)


def evaluator_with_batches(model, make, read):
    def train(model, optimizer, training_step, scheduler=None, max_steps=None, max_epochs=None):
        for _ in range(max_steps):
            optimizer.zero_grad()
            training_step(make(torch.randn(BATCH, 1, 8, 8), torch.arange(BATCH) % 4), model).backward()
            optimizer.step()

    def training_step(batch, model):
        images, labels = read(batch)
        return F.cross_entropy(model(images), labels)

    optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=1e-2)
    return TorchEvaluator(train, optimizer, training_step)


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (Batch, lambda batch: (batch.images, batch.labels)),
        (lambda *pair: UserDict(zip(("images", "labels"), pair, strict=True)), lambda batch: batch.values()),
    ],
)
def test_samples_are_counted_in_batches_of_any_class(make, read):
    model = network()
    with pytest.warns(SparseVDWarning, match=f"N = {4 * BATCH}"):
        SparseVDPruner(model, [CONVOLUTIONS], evaluator_with_batches(model, make, read), 4).compress()


def test_a_batch_is_not_asked_for_what_is_known():
    model = network()
    evaluator = evaluator_with_batches(model, Closed, lambda batch: batch.read())
    SparseVDPruner(model, [CONVOLUTIONS], evaluator, 4, settings=settings()).compress()


@pytest.mark.parametrize(
    ("maker", "accumulation"),
    [
        (lightning_evaluator, {"accumulate_grad_batches": 2}),
        (transformers_evaluator, {"gradient_accumulation_steps": 2}),
    ],
)
def test_epochs_of_accumulated_steps(maker, accumulation, monkeypatch):
    """The masks are made at the last step of the trainer: warm-up and rates come to their end there."""
    steps = []
    monkeypatch.setattr(Learning, "warn_if_cut_short", lambda self: steps.append((self._step, self._last_step)))
    model, evaluator = maker(network(), **accumulation)
    SparseVDPruner(model, [CONVOLUTIONS], evaluator, settings=settings()).compress(max_epochs=4)
    assert steps == [(8, 8)]


def test_each_layer_has_the_estimator_that_the_settings_name():
    chosen = settings(estimators={"0": "weight"}, kl_weights={"3": 2.0})
    pruner = SparseVDPruner(network(), [CONVOLUTIONS], settings=chosen)
    estimators = {name: posterior.settings.estimator for (name, _), posterior in pruner._posteriors.items()}
    assert estimators == {"0": "weight", "3": "local"}
    assert pruner._module_wrappers["0"].pruning_target_spaces["weight"].apply_method == "sparse_vd_mul"
    for unmatched in ({"estimators": {"Conv3d": "weight"}}, {"kl_weights": {"Conv3d": 2.0}}):
        with pytest.raises(svd.SparseVDError, match="no module of Sequential matches 'Conv3d'"):
            SparseVDPruner(network(), [CONVOLUTIONS], settings=settings(**unmatched))


def test_training_by_epochs():
    model, evaluator = lightning_evaluator(network())
    SparseVDPruner(model, [CONVOLUTIONS], evaluator).compress(max_epochs=3)
    model, evaluator = torch_evaluator(network())
    with pytest.raises(svd.SparseVDError, match="how many steps has an epoch"):
        SparseVDPruner(model, [CONVOLUTIONS], evaluator).compress(max_epochs=3)
    model, evaluator = torch_evaluator(network())
    with pytest.raises(svd.SparseVDError, match="how long"):
        SparseVDPruner(model, [CONVOLUTIONS], evaluator).compress()


def test_a_training_cut_short_is_named():
    model, evaluator = lightning_evaluator(network())
    evaluator.trainer.trace_kwargs["max_epochs"] = 1
    with pytest.warns(SparseVDWarning, match="after 4 of 40 steps"):
        SparseVDPruner(model, [CONVOLUTIONS], evaluator, 40).compress()


class TiedLanguageModel(nn.Module):
    """An embedding whose table is the weight of the last layer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 12, padding_idx=3)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.table(ids)))


def test_a_weight_of_two_modules_has_one_posterior():
    model = TiedLanguageModel()
    pruner = SparseVDPruner(model, [{"op_names": ["table", "head"]}], settings=settings(init_log_sigma2=-3.0))
    table, head = pruner._posteriors["table", "weight"], pruner._posteriors["head", "weight"]
    assert table.log_sigma2 is head.log_sigma2 and table.theta is head.theta
    torch.testing.assert_close(pruner.kl(), table.kl())
    model.train()(torch.randint(20, (4, 6))).square().sum().backward()
    assert table.log_sigma2.grad.any() and not table.log_sigma2.grad[3].any()  # no noise on the padding row
    with torch.no_grad():
        table.log_sigma2[:, ::2] = 9.0
    _, masks = pruner.compress()
    mask = masks["head"]["weight"]
    assert torch.equal(masks["table"]["weight"], mask)
    assert mask[3].all() and not mask[torch.arange(20) != 3, ::2].any()  # the padding row stays


def test_two_layers_of_one_weight_learn_together():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    network[3].weight = network[1].weight
    model, evaluator = torch_evaluator(network)
    pruner = SparseVDPruner(model, [{"op_names": ["1", "3"]}], evaluator, 8, settings=settings())
    first, second = pruner._posteriors["1", "weight"], pruner._posteriors["3", "weight"]
    start = first.theta.detach().clone()
    pruner.compress(max_steps=8, max_epochs=None)
    assert first.theta is second.theta and not torch.equal(first.theta, start)
    pruner.unwrap_model()
    assert torch.equal(model[1].weight, model[3].weight)
