"""Sparse variational dropout as a pruner of NNI: its config_list, evaluators, schedules and chains."""

import warnings
from typing import Any

import torch
from nni.compression.base.compressor import Compressor, Pruner
from nni.compression.base.target_space import PruningTargetSpace
from nni.compression.base.wrapper import ModuleWrapper
from nni.compression.pruning.tools import generate_sparsity
from nni.compression.utils.evaluator import Evaluator
from torch import Tensor, nn

from ...convert import find_kl_weight
from ...errors import ModelError, SettingError, SparseVDWarning, TrainingError
from ...regularize import SparseVDSettings
from .config import check_config
from .gates import Gates, find_places
from .learning import Learning
from .posteriors import TargetPosterior
from .targets import Spaces, active, in_model_order, settle_

Values = dict[str, dict[str, Tensor]]
"""{module name: {target name: tensor}}: how NNI hands data, metrics and masks around."""


class SparseVDPruner(Pruner):  # type: ignore[misc]
    """Prunes what drowns in its own noise (Molchanov, Ashukha, Vetrov, ICML 2017).

    Each target that the config_list selects gets a posterior N(theta, sigma^2).  While the evaluator trains, the layers
    compute with noise, the loss gains KL / N, and log sigma^2 learns beside the weights.  Then

    - a target with neither `sparse_ratio` nor `sparse_threshold` loses what reaches log alpha 3, and keeps at least its
      best block: there is no ratio to set;
    - the metric that ratios rank and thresholds cut is the signal's share of the power, theta^2 / (theta^2 + sigma^2) =
      1 / (1 + alpha), summed over each block and over the members of a dependency group: between 0 and 1, high is
      relevant, and 0.0474 is log alpha 3;
    - `granularity: default` means single weights, as in LevelPruner; `out_channel` where the entry has a dependency
      group, or where the settings ask for gates.

    `training_steps` are the optimizer steps until the masks are made; None: as many as `compress` or a schedule says.
    Without an evaluator, train the wrapped model yourself on `loss + pruner.kl() / n_train`, then call `compress()`.

    Raises `SettingError` for a config_list that cannot mean what it says, naming the entry and the key.
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
        self.settings = settings or SparseVDSettings()
        if self.settings.posterior.include or self.settings.posterior.exclude:
            raise SettingError("posterior.include, posterior.exclude: in NNI the config_list selects; use its keys")
        granularity = self.settings.posterior.granularity
        places = None if granularity == "weight" else find_places(model, config_list, evaluator, granularity)
        super().__init__(model, config_list, evaluator, existed_wrappers)
        self.training_steps = training_steps
        self.interval_steps = -1 if training_steps is None else training_steps  # schedules set these two
        self.total_times = 1
        self._module_wrappers: dict[str, ModuleWrapper] = in_model_order(self._module_wrappers, model)
        self._target_spaces: Spaces = in_model_order(self._target_spaces, model)
        self._members = settle_(self._target_spaces, self.settings.share_at_threshold)
        posterior = self.settings.posterior
        self.gates = places.attach_(posterior) if places else Gates(model, {}, {})
        self._posteriors = {
            (name, target): TargetPosterior(space, posterior, find_kl_weight(name, self._module(name), posterior))
            for name, target, space in active(self._target_spaces)
            if posterior.granularity == "both" or target != "weight" or self._module(name) not in self.gates.by_layer
        }
        self._epochs: int | None = None
        self._decided: Values | None = None
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
        """Go on with the model, the wrappers and the evaluator of another compressor."""
        pruner: SparseVDPruner = super().from_compressor(
            compressor, new_config_list, evaluator=evaluator, training_steps=training_steps, settings=settings
        )
        return pruner

    # What is learnt.

    def kl(self) -> Tensor:
        """KL of all posteriors from their priors, in nats: a scalar with gradient.  The objective is loss + kl / N.

        Raises `ModelError` once the masks are made and the posteriors gone.
        """
        terms = [one.kl() for one in self._posteriors.values()] + [gate.kl() for gate in self.gates.all()]
        if not terms:
            raise ModelError("SparseVDPruner: the masks are made and no posterior is left; train on without kl()")
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()

    def log_alpha(self) -> Values:
        """{module: {target: log alpha of every block}}, in float64; after `compress` those that it decided on."""
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
        moments = [member.sparse_vd.moments() for member in self._members[name, target]]
        signal, noise = (torch.stack(parts).sum(0) for parts in zip(*moments, strict=True))
        return noise.log() - (signal + torch.finfo(torch.float64).tiny).log()

    # NNI's pipeline: data, metrics, masks.

    def _collect_data(self) -> Values:
        return self.log_alpha()

    def _calculate_metrics(self, data: Values) -> Values:
        return {name: {target: (-value).sigmoid() for target, value in values.items()} for name, values in data.items()}

    def _generate_sparsity(self, metrics: Values) -> Values:
        masks: Values = generate_sparsity(metrics, self._target_spaces)
        return masks

    def _set_default_sparse_granularity(self, target_space: PruningTargetSpace) -> str | None:
        grouped = target_space.dependency_group_id is not None
        return "out_channel" if grouped or self.settings.posterior.granularity != "weight" else None

    # Its life: learn, decide once, be an ordinary pruned layer ever after.

    def compress(self, max_steps: int | None = None, max_epochs: int | None = None) -> tuple[nn.Module, Values]:
        """Train, decide, and give back the wrapped model and its masks, in NNI's format."""
        result: tuple[nn.Module, Values] = super().compress(max_steps, max_epochs)
        return result

    def _single_compress(self, max_steps: int | None, max_epochs: int | None) -> None:
        if self._decided is not None:
            return
        if self.evaluator is not None:
            steps = self.training_steps if max_steps is None and max_epochs is None else max_steps
            if steps is None and max_epochs is None:
                raise SettingError("SparseVDPruner: how long? give training_steps=, or compress(max_steps=...)")
            if self.interval_steps < 0 and steps is not None:
                self.interval_steps = steps
            self._epochs = max_epochs
            self._fusion_compress(steps, max_epochs)
            return
        if not self._has_learnt():
            warnings.warn(
                "SparseVDPruner: no evaluator, and the posterior has not been trained: this is pruning by magnitude. "
                "Pass an evaluator, or train the wrapped model on loss + pruner.kl() / n_train first",
                SparseVDWarning,
                stacklevel=2,
            )
        self._decide()
        self._clear()

    def _fuse_preprocess(self, evaluator: Evaluator) -> None:
        if self._decided is not None:
            return
        variances = [one.log_sigma2 for one in self._posteriors.values()]
        gates = [parameter for gate in self.gates.all() for parameter in gate.parameters()]
        rated = [(variances, 1.0), (gates, self.settings.gate_rate)]
        schedule = (self.interval_steps, self.total_times)
        self._learning = Learning(evaluator, self.settings, self.kl, rated, schedule, self._epochs, self._renew_masks)

    def _fuse_postprocess(self, evaluator: Evaluator) -> None:
        if self._learning is None:  # an earlier training has decided
            return
        self._learning.warn_if_cut_short()
        self._learning = None
        if self._decided is None:
            self._decide()
        self._clear()

    def _renew_masks(self, last: bool) -> None:
        if last:
            self._decide()
        else:
            self.update_masks(self.generate_masks())

    def _decide(self) -> None:
        log_alpha = self.log_alpha()
        unsound = [f"{name}.{target}" for name, v in log_alpha.items() for target, x in v.items() if x.isnan().any()]
        if unsound:
            raise TrainingError(f"the posterior of {', '.join(unsound)} is not finite: lower the learning rates")
        masks = self._generate_sparsity(self._calculate_metrics(log_alpha))
        self.update_masks(masks)
        self._decided = log_alpha
        weights = [(name, s.mask) for name, target, s in active(self._target_spaces) if target == "weight"]
        self.gates.fold_({self._module(name): mask.flatten(1).any(1) for name, mask in weights if mask.dim() > 1})
        for one in self._posteriors.values():
            one.silence_()
        self._warn_of_collapse(masks)

    def _clear(self) -> None:
        """Posteriors off the model.  Not while it trains: DDP waits for a gradient of all that it has seen."""
        for one in self._posteriors.values():
            one.remove_()
        self._posteriors = {}
        self.gates = Gates(self.gates.model, {}, {})

    def _has_learnt(self) -> bool:
        start = self.settings.posterior.init_log_sigma2
        learnt = (*(one.log_sigma2 for one in self._posteriors.values()), *(g.log_sigma2 for g in self.gates.all()))
        return any(bool((value != start).any()) for value in learnt)

    def _warn_of_collapse(self, masks: Values) -> None:
        cut = [(name, masks[name][target]) for name, target, space in active(self._target_spaces)
               if space.sparse_threshold is not None]  # fmt: skip
        single = [name for name, mask in cut if mask.numel() > 1 and mask.sum() <= 1]
        if single:
            warnings.warn(
                f"SparseVDPruner: all but one block of {', '.join(single)} drowned in noise. If that is not what the "
                "data say: start from a trained network, warm up for longer (settings.warmup), or lower kl_coefficient",
                SparseVDWarning,
                stacklevel=2,
            )

    # Targets.

    def _validate_config(self) -> None:
        check_config(self.bound_model, self.config_list)

    def _module(self, name: str) -> nn.Module:
        module: nn.Module = self._module_wrappers[name].module
        return module
