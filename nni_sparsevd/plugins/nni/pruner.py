"""Sparse variational dropout as a pruner of NNI: its config_list, evaluators, schedules and chains."""

import warnings
from numbers import Integral
from typing import Any

import nni.compression.pruning
import torch
from nni.compression.base.compressor import Compressor, Pruner
from nni.compression.base.target_space import PruningTargetSpace
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.pruning.tools import generate_sparsity
from nni.compression.utils.evaluator import Evaluator
from torch import Tensor, nn

from ...convert import check_patterns, find_kl_weight, settle_estimator
from ...errors import ModelError, SettingError, SparseVDWarning
from ...masks import find_holders
from ...nn import is_variational
from ...regularize import SparseVDSettings, have_learned, settings_or_defaults
from ..patching import Patch
from .compatibility import addition, enable_once
from .config import check_config, to_current_keys
from .gates import Gates, find_places
from .learning import Learning
from .messages import UNTRAINED, check_finite, log_defaults, warn_of_collapse, warn_of_earlier_masks, warn_of_nothing
from .posteriors import TargetPosterior
from .targets import Spaces, Values, active, has_own_amount, in_model_order, settle_, tie_again_


class SparseVDPruner(Pruner):  # type: ignore[misc]
    """Prunes the weights or channels whose noise has outgrown their signal (Molchanov, Ashukha, Vetrov, ICML 2017).

    Each target that the config_list selects gets a posterior N(theta, sigma^2).  While the evaluator trains, the layers
    compute with noise, the loss gains KL / N, and log sigma^2 learns beside the weights.  Then the masks are made:

    - A target with neither `sparse_ratio` nor `sparse_threshold` loses every block whose log alpha has reached the
      threshold (3), and keeps at least its best block.  There is no ratio to set.
    - Ratios rank, and thresholds cut, the signal's share of the power: theta^2 / (theta^2 + sigma^2) = 1 / (1 + alpha),
      summed over each block and over the members of a dependency group.  It lies between 0 and 1, high is relevant, and
      0.0474 is log alpha 3.
    - `granularity: default` means `out_channel` where a ratio, a threshold or a dependency group is given, or where the
      settings ask for gates: so it is in all pruners of NNI but `LevelPruner`.  Where nothing says how much to remove,
      it means single weights, and so does the block `[1]` anywhere.  What was chosen is logged.

    After `compress` the posteriors are gone, and what is left is what any pruner of NNI leaves.  Without an evaluator,
    train the wrapped model yourself on `loss + pruner.kl() / n_train`, then call `compress()`.

    The first pruner of a process calls `enable()`, which repairs NNI in memory; `disable()` undoes that.

    Args:
        model: The network to prune.  NNI wraps the selected layers in place.
        config_list: NNI's list of entries, in the keys of NNI 3 or NNI 2.
        evaluator: NNI's evaluator of any kind.  Gates need one that has a `dummy_input`.
        training_steps: Optimizer steps until the masks are made.  None: as many as `compress` or a schedule says.
        existed_wrappers: Wrappers of an earlier compressor, by module name; `from_compressor` passes them.
        settings: Prior, noise estimator, granularity, learning rates and the weight of the KL.

    Raises:
        SettingError: The config_list or the settings cannot mean what they say.  The message names the entry and the
            key.
        ModelError: The network has posteriors already, or is still wrapped by another pruner.
        TraceError: Gates are asked for, and the network cannot be traced.
    """

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        training_steps: int | None = None,
        existed_wrappers: dict[str, ModuleWrapper] | None = None,
        *,
        settings: SparseVDSettings | None = None,
    ) -> None:
        # The repairs come first: nearly everything below runs NNI's code.
        enable_once()
        self.settings = settings_or_defaults("SparseVDPruner", settings)
        _check_arguments(model, evaluator, existed_wrappers or {}, training_steps=training_steps)
        posterior = self.settings.posterior
        if posterior.include or posterior.exclude:
            raise SettingError("posterior.include, posterior.exclude: in NNI the config_list selects; use its keys")
        check_patterns(model, (*posterior.kl_weights, *posterior.estimators))
        config_list = to_current_keys(config_list)
        check_config(model, config_list)
        # Places for gates are found before NNI wraps the layers: a wrapped layer hides its operator from the trace.
        places = None
        if posterior.granularity != "weight":
            places = find_places(model, config_list, evaluator, posterior.granularity)
        holders = find_holders(model)
        self._defaults: dict[str, list[str]] = {"channels": [], "weights": []}
        """What the granularity was chosen to be -> the weights that the config_list names none for."""
        super().__init__(model, config_list, evaluator, existed_wrappers)
        log_defaults(self._defaults)
        warn_of_earlier_masks(sorted(name for name, targets in self._target_spaces.items() if not targets))
        self.training_steps = training_steps
        # NNI's schedules read and set these two: masks are renewed `total_times` times, every `interval_steps` steps.
        self.interval_steps = -1 if training_steps is None else training_steps
        self.total_times = 1
        # NNI's order follows the hash seed of the process; what is learned, and a saved state, must not.
        self._module_wrappers: dict[str, ModuleWrapper] = in_model_order(self._module_wrappers, model)
        self._target_spaces: Spaces = in_model_order(self._target_spaces, model)
        tie_again_(self._target_spaces, holders)
        self._members = settle_(self._target_spaces, self.settings.share_at_threshold)
        self.gates = Gates(model, {}, {}) if places is None else places.attach_(posterior)
        self._posteriors = self._attach_posteriors()
        self._epochs: int | None = None
        self._decided: Values | None = None
        self._kl_was_asked = False
        self._learning: Learning | None = None

    @classmethod
    def from_compressor(
        cls,
        compressor: Compressor,
        new_config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        training_steps: int | None = None,
        *,
        settings: SparseVDSettings | None = None,
    ) -> "SparseVDPruner":
        """Go on with the model and the wrappers of another compressor.

        Args:
            compressor: The earlier pruner, quantizer or distiller.
            new_config_list: Entries for this pruner.  The masks of the earlier one stay.
            evaluator: None: the evaluator of `compressor`.
            training_steps: Optimizer steps until the masks are made.  None: as many as `compress` or a schedule says.
            settings: Prior, noise estimator, granularity, learning rates and the weight of the KL.

        Returns:
            The new pruner, on the same model.

        Raises:
            SettingError: The config_list or the settings cannot mean what they say.
        """
        pruner: SparseVDPruner = super().from_compressor(
            compressor, new_config_list, evaluator=evaluator, training_steps=training_steps, settings=settings
        )
        return pruner

    def _attach_posteriors(self) -> dict[tuple[str, str], TargetPosterior]:
        """A posterior on every target that is pruned, except on weights whose channels a gate decides about alone."""
        settings = self.settings.posterior
        posteriors: dict[tuple[str, str], TargetPosterior] = {}
        posterior_of: dict[Tensor, TargetPosterior] = {}
        """Parameter -> its posterior: modules that share a parameter share that."""
        for name, target, space in active(self._target_spaces):
            module = self._module(name)
            gated = target == "weight" and module in self.gates.by_layer
            if settings.granularity == "both" or not gated:
                shared = posterior_of.get(space.target)
                own = settle_estimator(name, module, settings)
                posterior = TargetPosterior(space, own, find_kl_weight({name: module}, settings), shared)
                posteriors[name, target] = posterior
                posterior_of.setdefault(space.target, posterior)
        return posteriors

    # ---- what is learned

    def kl(self) -> Tensor:
        """The Kullback-Leibler divergence of all posteriors from their priors.  The objective is loss + kl / N.

        Returns:
            A scalar with gradient, in nats.

        Raises:
            ModelError: The masks are made, and no posterior is left.
        """
        self._kl_was_asked = True
        terms = [posterior.kl() for posterior in self._posteriors.values()]
        terms += [gate.kl() for gate in self.gates.all()]
        if not terms:
            raise ModelError("SparseVDPruner: the masks are made and no posterior is left; train on without kl()")
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()

    def log_alpha(self) -> Values:
        """Log alpha of every block: how far its noise has outgrown its signal.

        Returns:
            {module name: {target name: tensor}}, in float64, each tensor in the shape of the target's metric.  After
            `compress`, the values that the masks were made from.
        """
        if self._decided is not None:
            return self._decided
        values: Values = {}
        for name, target, space in active(self._target_spaces):
            values.setdefault(name, {})[target] = self._log_alpha(name, target, space)
        return values

    def _log_alpha(self, name: str, target: str, space: PruningTargetSpace) -> Tensor:
        gate = self.gates.by_layer.get(self._module(name)) if target == "weight" else None
        if gate is not None:
            return gate.log_alpha().detach().double().view(-1, *[1] * (space.target.dim() - 1))
        # The members of a dependency group decide as one: the evidence of a channel is that of all its writers.
        members = [member.sparse_vd.sum_powers() for member in self._members[name, target]]
        signal = torch.stack([signal for signal, _ in members]).sum(0)
        noise = torch.stack([noise for _, noise in members]).sum(0)
        # `tiny` keeps the log alpha of a block of zeros finite, so that it can be ranked and checked for nan.
        return noise.log() - (signal + torch.finfo(torch.float64).tiny).log()

    # ---- NNI's pipeline: data, metrics, masks

    def _collect_data(self) -> Values:
        return self.log_alpha()

    def _calculate_metrics(self, data: Values) -> Values:
        return {name: {target: (-value).sigmoid() for target, value in values.items()} for name, values in data.items()}

    def _generate_sparsity(self, metrics: Values) -> Values:
        masks: Values = generate_sparsity(metrics, self._target_spaces)
        return masks

    def _set_default_sparse_granularity(self, target_space: PruningTargetSpace) -> str | None:
        # A script that says how much to remove was written for another pruner of NNI, or could have been: all of them
        # but one remove channels then.  Where nothing says it, each weight is decided about, as in the paper.
        gated = self.settings.posterior.granularity != "weight"
        channels = gated or has_own_amount(target_space, self._target_spaces)
        if target_space.align is None and target_space.target is not None and target_space.target.dim() > 1:
            name = f"{target_space._wrapper.name}.{target_space._target_name}"
            self._defaults["channels" if channels else "weights"].append(name)
        return "out_channel" if channels else None

    # ---- its life: learn, decide once, and be an ordinary pruner ever after

    def compress(self, max_steps: int | None = None, max_epochs: int | None = None) -> tuple[nn.Module, Values]:
        """Train, decide, and prune.

        Args:
            max_steps: Optimizer steps of the whole training.  Where they are more than `training_steps`, the rest
                fine-tunes the masked network.  None: `training_steps`.
            max_epochs: Epochs of the whole training, in place of steps.

        Returns:
            The wrapped model and its masks, {module name: {target name: tensor of 0 and 1, or None}}.  A second call
            returns the same masks.

        Raises:
            SettingError: Nothing says how long to train, or how many steps an epoch has, a number is below 1, or a
                chain of compressors has no evaluator.
            ModelError: The model is unwrapped, and no masks are made yet.
            TrainingError: A posterior is not finite.
        """
        _check_lengths(max_steps=max_steps, max_epochs=max_epochs)
        if self._decided is None and not self._is_wrapped:
            raise ModelError(
                "SparseVDPruner: the model is unwrapped, and no masks are made yet; call wrap_model() first"
            )
        # Here and not below, since a chain of compressors comes here only: NNI then trains for all of them at once.
        if self.evaluator is not None:
            if self._decided is None:
                max_steps = self._choose_length(max_steps, max_epochs)
        elif len(self.fused_compressors) > 1:
            raise SettingError("SparseVDPruner: a chain of compressors runs in one training; give it an evaluator")
        result: tuple[nn.Module, Values] = super().compress(max_steps, max_epochs)
        return result

    def _single_compress(self, max_steps: int | None, max_epochs: int | None) -> None:
        if self._decided is not None:
            return
        if self.evaluator is None:
            self._compress_untrained()
        else:
            self._fusion_compress(max_steps, max_epochs)

    def _choose_length(self, max_steps: int | None, max_epochs: int | None) -> int | None:
        """Settle when the masks are made; returns the steps of the whole training, None where epochs count it."""
        if max_steps is None and max_epochs is None:
            max_steps = self.training_steps
            if max_steps is None:
                raise SettingError("SparseVDPruner: how long? give training_steps=, or compress(max_steps=...)")
        if self.interval_steps < 0 and max_steps is not None:  # no schedule and no training_steps: one mask, at the end
            self.interval_steps = max_steps
        self._epochs = max_epochs
        return max_steps

    def _compress_untrained(self) -> None:
        """Decide from the posterior as it is, which the user may have trained without an evaluator."""
        if not self._has_learned():
            warnings.warn(UNTRAINED, SparseVDWarning, stacklevel=3)
        self._decide()
        self._remove_posteriors()

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        if self._decided is not None or not any(active(self._target_spaces)):
            return
        # A parameter that several modules share has one variance, which is to step once.
        variances = list(dict.fromkeys(posterior.log_sigma2 for posterior in self._posteriors.values()))
        gates = [parameter for gate in self.gates.all() for parameter in gate.parameters()]
        rated = [(variances, 1.0), (gates, self.settings.gate_rate)]
        schedule = (self.interval_steps, self.total_times)
        self._learning = Learning(evaluator, self.settings, self.kl, rated, schedule, self._epochs, self._renew_masks)

    def _fuse_postprocess(self, evaluator: Evaluator) -> None:
        if self._learning is None:  # an earlier training has decided, or there is nothing to decide about
            return
        self._learning.warn_if_cut_short()
        self._learning = None
        if self._decided is None:
            self._decide()
        self._remove_posteriors()

    def _renew_masks(self, last: bool) -> None:
        """Make masks at a step of the schedule; the last ones are final."""
        if last:
            self._decide()
        else:
            self.update_masks(self.generate_masks())

    def _decide(self) -> None:
        """Make the final masks and end all noise."""
        log_alpha = self.log_alpha()
        check_finite(log_alpha)
        masks = self._generate_sparsity(self._calculate_metrics(log_alpha))
        self.update_masks(masks)
        self._decided = log_alpha
        warn_of_nothing(self._target_spaces, masks)
        # A gate's mean goes into the weights, so it has to be folded while the masks say which channels it closes.
        kept = {}
        for name, target, space in active(self._target_spaces):
            if target == "weight" and space.mask.dim() > 1:
                kept[self._module(name)] = space.mask.flatten(1).any(1)
        self.gates.fold_(kept)
        for posterior in self._posteriors.values():
            posterior.stop_noise_()
        warn_of_collapse(self._target_spaces, masks)

    def _remove_posteriors(self) -> None:
        """Take the posteriors off the model.

        Not while it trains: DistributedDataParallel waits for a gradient of every parameter that it has seen.
        """
        for posterior in self._posteriors.values():
            posterior.remove_()
        self._posteriors = {}
        self.gates = Gates(self.gates.model, {}, {})

    def _has_learned(self) -> bool:
        start = self.settings.posterior.init_log_sigma2
        learned = [posterior.log_sigma2 for posterior in self._posteriors.values()]
        learned += [gate.log_sigma2 for gate in self.gates.all()]
        return not learned or have_learned(learned, start, with_kl=self._kl_was_asked)

    # ---- targets

    def _validate_config(self) -> None:
        """Nothing is left for NNI's constructor to check."""

    def _module(self, name: str) -> nn.Module:
        module: nn.Module = self._module_wrappers[name].module
        return module


def _check_arguments(
    model: nn.Module, evaluator: object, existed_wrappers: dict[str, ModuleWrapper], *, training_steps: object
) -> None:
    """Refuse what NNI fails on without a word, and networks whose layers have something in their way."""
    _check_lengths(training_steps=training_steps)
    if evaluator is not None and not isinstance(evaluator, Evaluator):
        raise SettingError(f"SparseVDPruner: evaluator has to be an Evaluator of NNI, found {evaluator!r}")
    if is_variational(model):
        raise ModelError(f"{type(model).__name__} has posteriors already; bake_ it first")
    for name, module in model.named_modules():
        if hasattr(module, "_nni_wrapper") and name not in existed_wrappers:
            raise ModelError(
                f"{name} is still wrapped by an earlier pruner: call its unwrap_model() first, or go on with "
                "SparseVDPruner.from_compressor"
            )


def _check_lengths(**lengths: object) -> None:
    for name, length in lengths.items():
        if length is not None and not (isinstance(length, Integral) and int(length) >= 1):
            raise SettingError(f"SparseVDPruner: {name} = {length!r} has to be a whole number of at least 1")


@addition
def pruner_class(patch: Patch) -> None:
    """Make our pruner available where NNI's own pruners are."""
    patch.set(nni.compression.pruning, "SparseVDPruner", SparseVDPruner)
