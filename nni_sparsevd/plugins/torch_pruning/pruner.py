"""`SparseVDPruner`: a pruner of Torch-Pruning whose regularizer is the KL, and that can decide by itself."""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ...convert import bake_, remove_posteriors_, sparsify_
from ...errors import SettingError, SparseVDError, SparseVDWarning, TraceError, describe_error
from ...graph import Inputs, evaluation_mode
from ...measure import cost_function
from ...nn import find_gates, is_variational, kl, named_posteriors, to_plain_network_
from ...regularize import (
    Arrival,
    Budget,
    BudgetSearch,
    Controller,
    SparseVDSettings,
    VarianceOptimizer,
    have_learned,
    misses,
    regularize_under_pressure_,
    settings_or_defaults,
    warn_before_first_step,
    weigh_by_macs_,
)
from ...settings import PosteriorSettings
from .attention import attach_gates_, find_attentions, update_attentions_
from .cutting import enable
from .importance import SparseVDImportance
from .options import (
    Options,
    check_decision,
    check_layers,
    check_numbers,
    check_options,
    fill_options,
    find_ignored,
    graph_options_for,
)
from .scored_group import Cut, Limits, ScoredGroup

LOOKS = 24
"""How often the budget's controller looks at the network in a training whose steps are known."""
STEPS_BETWEEN_LOOKS = 100
"""The same where they are not known."""


class SparseVDPruner(tp.pruner.BasePruner):  # type: ignore[misc]
    """Takes the place of `GroupNormPruner`: its arguments, without `reg`, and the same three calls in a training loop.

    The layers of `model` get posteriors, and with `settings.posterior.granularity` "gate" or "both" each coupled group
    gets a gate. Between backward and the optimizer's step, `regularize(model)` adds the gradient of KL / N and moves
    the variances, which have an optimizer of their own. Then `step()` cuts:

    - without a `pruning_ratio`, exactly the channels whose log alpha has reached the threshold (3), except the best
      channel of each group;
    - with a `pruning_ratio`, the least relevant channels, as every pruner of Torch-Pruning does;
    - with a `budget`, the channels whose removal brings the network closest to the budget. In training, a controller
      presses the KL up or down so that the threshold itself arrives there. It looks at the network whenever you call
      `update_regularizer()`, or, in a loop that never does, by itself. The KL of each weight and channel is weighed by
      the multiply-accumulates that it costs.

    After the last step the layers and their parameters are ordinary, and the sizes that attention modules remember are
    up to date. Make a new optimizer then, as after every cut.

    With gates the cut is exact: the network computes what it computed in evaluation mode before (law 2). Of attention,
    that is so for timm's kind, with one projection `qkv`. Other kinds are cut, too, where `num_heads` names their
    projections; the sizes that they remember and the temperature of their softmax are left to you.

    Args:
        model: The network, changed in place.
        example_inputs: What the network is called with, for tracing: a tensor, a tuple or list of arguments, a dict of
            keyword arguments, or a pair (args, kwargs), in any nesting.
        importance: Ranks channels; None: a `SparseVDImportance`. Without a ratio it must be one that gives shares.
        pruning_ratio: The part of channels to remove; None: the posterior decides, or the budget. Beside a
            `pruning_ratio_dict`, None is 0: layers that the dict does not name keep their channels.
        settings: How posteriors are made and trained; `n_train` is needed for `regularize`.
        training_steps: How often `regularize` will be called: the KL warms up over the first part of these steps, and
            the learning rate of the variances falls to 0. None: full KL and full rate throughout.
        budget: What the network may cost at the end.
        **options: Further arguments of Torch-Pruning's `BasePruner`; one that is None counts as not given. Without a
            ratio, `max_pruning_ratio` limits what the posterior removes of each group, and `prune_num_heads=False` and
            `prune_head_dims=False` keep heads and their dimensions.

    Raises:
        SettingError: Torch-Pruning does not have an option, a number is out of range, a layer is not in the network, a
            budget comes with a ratio, a ratio of heads without one of channels, or the importance gives no shares
            though the posterior is to decide.
        ModelError: No layer can have a posterior.
        TraceError: Torch-Pruning cannot trace the network; it is then what it was.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        importance: SparseVDImportance | None = None,
        pruning_ratio: float | None = None,
        *,
        settings: SparseVDSettings | None = None,
        training_steps: int | None = None,
        budget: Budget | None = None,
        **options: Unpack[Options],
    ) -> None:
        options = check_options(options)
        check_layers(options, model)
        check_numbers(pruning_ratio, training_steps, options)
        if type(example_inputs) is list:  # in Torch-Pruning, a list of arguments
            example_inputs = tuple(example_inputs)
        importance = importance or SparseVDImportance()
        has_ratio = pruning_ratio is not None or bool(options.get("pruning_ratio_dict"))
        check_decision(has_ratio, options, budget, importance)
        enable()
        self.settings = settings_or_defaults("SparseVDPruner", settings)
        self._posterior_decides = not has_ratio
        self._training_steps = training_steps
        self._steps_done = 0
        self._groups_cut = 0
        self._is_untrained = False
        """Whether a warning has said that the posterior knows nothing."""
        self._attentions = find_attentions(model)
        # Before the host's constructor: it traces the network, and must meet the layers and gates that are pruned.
        options = fill_options(options, self._attentions, model, example_inputs)
        _add_posteriors_(model, self.settings.posterior, example_inputs, find_ignored(options))
        # Torch-Pruning leaves a network that it has traced in evaluation mode, and traces by autograd.
        with _undone_on_error(model), evaluation_mode(model), torch.enable_grad():
            super().__init__(model, example_inputs, importance, pruning_ratio=pruning_ratio or 0.0, **options)
        self._variances = VarianceOptimizer.for_model(self.model, self.settings)
        self._example_inputs, self._options = example_inputs, options
        self._controller = Controller(self.settings.posterior.threshold)
        self._looks_by_itself = True
        self._search: BudgetSearch | None = None
        self.arrival: Arrival | None = None
        """How close the budget was met; None before `step` and without a budget."""
        if budget is not None:
            self._search = BudgetSearch(budget, cost_function(budget.kind, example_inputs), self.model)
            if budget.kind != "parameters":  # each weight costs the same there
                weigh_by_macs_(self.model, example_inputs)

    def kl(self) -> Tensor:
        """The KL of all posteriors from their priors, in nats: a scalar with gradient.

        Raises:
            ModelError: The network has no posterior; after the last `step` it is ordinary.
        """
        return kl(self.model)

    def update_regularizer(self) -> None:
        """Let the budget's controller look at the network, e.g. once an epoch. Without a budget nothing happens.

        In a loop that never calls this, `regularize` does, 24 times in a training whose steps are known.
        """
        self._looks_by_itself = False
        self._look()

    def _look(self) -> None:
        if self._search is None or self.arrival is not None:
            return
        progress = self._progress()
        cutoff, _ = self._find_cutoff(self._score_groups(), self._search)
        # Without a known end the threshold is wanted at once: progress 1.
        self._controller.react(_log_alpha(cutoff), 1.0 if progress is None else progress)

    def regularize(self, model: nn.Module | None = None, loss: Tensor | None = None) -> None:
        """Add the gradient of weight * KL / N to what backward has left, and take one step of the variances.

        Call it between `loss.backward()` and `optimizer.step()`.

        Args:
            model: Not needed: an argument of Torch-Pruning's own pruners.
            loss: Not needed: an argument of Torch-Pruning's own pruners.

        Raises:
            SettingError: `settings.n_train` is missing.
        """
        if self.settings.n_train is None:
            raise SettingError("SparseVDPruner: KL / N needs N: pass settings=SparseVDSettings(n_train=...)")
        if self._looks_by_itself and self._steps_done % self._steps_between_looks() == 0:
            self._look()
        progress = self._progress()
        weight = self.settings.kl_weight_now(progress, self.settings.n_train)
        if not self._steps_done:
            warn_before_first_step("SparseVDPruner", self.model)
        regularize_under_pressure_(self.model, weight, self._controller.pressure)
        if not self._variances.holds_those_of(self.model):  # a cut, or a loaded state, has replaced them
            self._variances = VarianceOptimizer.for_model(self.model, self.settings)
        self._variances.step(progress)
        self._steps_done += 1

    def step(self, interactive: bool = False) -> Iterator[Any] | None:
        """Cut the network, once; with `iterative_steps` and a ratio, call it that many times.

        A network whose posterior was never trained is cut with a warning: the posterior knows nothing about it. After
        the last step, a further call removes nothing and warns. Whoever stops before the last step calls `finish`.

        Args:
            interactive: Cut nothing yet: the caller prunes all groups, and calls `finish` after the last step.

        Returns:
            The groups to be pruned where the caller prunes them, else None.
        """
        enable()
        if not is_variational(self.model):
            warnings.warn(
                "SparseVDPruner: the last step has made the network ordinary, so this one removes nothing",
                SparseVDWarning,
                stacklevel=2,
            )
            return iter(()) if interactive else None
        self._warn_if_untrained()
        self.current_step += 1
        if interactive:
            return self._cut_by_caller()
        for group in self._cut_by_caller():
            group.prune()
        if self._posterior_decides or self.current_step >= self.iterative_steps:
            self.finish()
        return None

    def _cut_by_caller(self) -> Iterator[Any]:
        """The groups to be pruned; after the last one, the sizes of attentions are brought up to date."""
        for group in self._prune():
            self._groups_cut += 1
            yield group
        self._attentions = update_attentions_(self._attentions, self.num_heads)

    def finish(self) -> nn.Module:
        """Make the layers ordinary: masked as in evaluation mode, and with the gates folded in.

        A dead channel that stays, for the sake of rounding or of other heads, is zero. A warning says where no step has
        removed anything.

        Returns:
            The model.

        Raises:
            ModelError: The sizes of an attention do not fit its heads any more.
        """
        self._attentions = update_attentions_(self._attentions, self.num_heads)
        if not self._groups_cut and not self._is_untrained and is_variational(self.model):
            self._warn_of_nothing()
        if self.arrival is not None:  # the budget's threshold is the one that counts
            for gate in find_gates(self.model):
                gate.threshold = self.arrival.log_alpha + 1e-4  # scores are rounded to float32
        return bake_(self.model)

    def _steps_between_looks(self) -> int:
        return STEPS_BETWEEN_LOOKS if self._training_steps is None else max(1, self._training_steps // LOOKS)

    def _warn_of_nothing(self) -> None:
        """Warn that no channel has left, and say why."""
        if self._search is not None:
            reason = "no cut comes closer to the budget"
        elif self._posterior_decides:
            reason = (
                f"no channel that may leave has a log alpha of {self.settings.posterior.threshold:g}: train for "
                "longer, raise kl_coefficient, or set a pruning_ratio or a budget"
            )
        else:
            reason = "the ratio, rounded for each layer, leaves every channel, or no step was made"
        warnings.warn(
            f"SparseVDPruner: nothing was removed. {reason[0].upper()}{reason[1:]}. Layers that are ignored or frozen "
            "stay, and those that share channels with them",
            SparseVDWarning,
            stacklevel=4,
        )

    def _warn_if_untrained(self) -> None:
        """Warn where the variances are what they were at the start, or have moved without the KL."""
        variances = [module.log_sigma2 for _, module in named_posteriors(self.model)]
        start = self.settings.posterior.init_log_sigma2
        if not have_learned(variances, start, with_kl=self._steps_done > 0):
            self._is_untrained = True
            if isinstance(self.importance, SparseVDImportance):
                self.importance.has_warned = True
            what = "no channel has reached the threshold" if self._posterior_decides else "channels go by magnitude"
            if self._search is not None:
                what = "the budget is met by channels that nothing says are dispensable"
            warnings.warn(
                f"SparseVDPruner: the posterior has not been trained, and {what}. Train first, and call "
                "pruner.regularize(model) in each step, between loss.backward() and optimizer.step()",
                SparseVDWarning,
                stacklevel=3,
            )

    def _progress(self) -> float | None:
        """The part of the training that is done; None where nobody has said how long it is."""
        if not self._training_steps:
            return None
        return min(1.0, self._steps_done / self._training_steps)

    @torch.no_grad()
    def _prune(self) -> Iterator[Any]:
        """The groups to be pruned: Torch-Pruning's choice where there is a ratio, else the posterior's."""
        if not self._posterior_decides:
            yield from super()._prune()
            return
        groups = self._score_groups()
        for cut in self._choose_cuts(groups, self._choose_cutoff(groups)):
            group = self.DG.get_pruning_group(cut.layer, cut.function, cut.indices)
            if self.DG.check_pruning_group(group):  # else a layer would be left without channels
                self.num_heads.update(cut.num_heads)
                yield group

    def _score_groups(self) -> list[ScoredGroup]:
        """All groups that have a posterior, with the score of each channel."""
        scored = []
        for group in self.DG.get_all_groups(self.ignored_layers, self.root_module_types):
            is_attention, projections = self._is_atten_group(group)
            # The group of an attention gets the projection behind it as its root: that one has each channel once, where
            # qkv has it three times.
            rooted = self._downstream_node_as_root_if_attention(group) if is_attention else group
            # In grouped-query attention a head of keys and values serves several heads of queries, and stays with them.
            if len({self.num_heads[projection] for projection in projections}) > 1:
                projections = []
            scores = None if rooted is None else self.importance.scores(rooted)
            if scores is not None:
                root = rooted[0].dep
                by_channel_group = scores.view(self._get_channel_groups(rooted), -1).cpu()
                scored.append(
                    ScoredGroup(
                        root.target.module, root.handler, by_channel_group, is_attention, projections=tuple(projections)
                    )
                )
        return scored

    def _choose_cutoff(self, groups: list[ScoredGroup]) -> float:
        """The score up to which channels are removed: that of the threshold, or the one that meets the budget."""
        at_threshold = self.settings.share_at_threshold
        search = self._search
        if search is None:
            return at_threshold
        cost_at_threshold = search.cost(self._cut_copy(groups, at_threshold))
        cutoff, reached = self._find_cutoff(groups, search)
        self.arrival = Arrival(search.budget, search.dense, cost_at_threshold, reached, _log_alpha(cutoff))
        if misses(reached, search.budget.fraction * search.dense):
            warnings.warn(
                f"SparseVDPruner: the budget of {search.budget.fraction:g} of the {search.budget.kind} is missed: "
                f"{reached / search.dense:.3f} is left. Ignored layers, the best channel of each group and what fills "
                "a multiple of round_to always stay",
                SparseVDWarning,
                stacklevel=2,
            )
        return cutoff

    def _find_cutoff(self, groups: list[ScoredGroup], search: BudgetSearch) -> tuple[float, float]:
        """(the score up to which channels must be removed to meet the budget, the cost then)."""
        scores = torch.cat([group.scores.flatten() for group in groups])
        return search.find_cutoff(scores, lambda cutoff: self._cut_copy(groups, cutoff))

    def _choose_cuts(self, groups: list[ScoredGroup], cutoff: float) -> list[Cut]:
        """What is removed from each group at this cutoff."""
        limits = Limits(
            self.round_to,
            self.max_pruning_ratio,
            whole_heads=self._options.get("prune_num_heads", True),
            head_dims=self._options.get("prune_head_dims", True),
        )
        cuts = [group.choose_cut(cutoff, limits) for group in groups]
        return [cut for cut in cuts if cut is not None]

    def _cut_copy(self, groups: list[ScoredGroup], cutoff: float) -> nn.Module:
        """An ordinary copy of the network, cut at this cutoff."""
        # The graph of the network itself holds its layers, so the copy needs a graph of its own.
        twin = copy.deepcopy(self.model)
        twin_of = dict(zip(self.model.modules(), twin.modules(), strict=True))
        attentions = find_attentions(twin)
        with torch.enable_grad():  # Torch-Pruning traces by autograd
            graph = tp.DependencyGraph().build_dependency(
                twin, self._example_inputs, **graph_options_for(twin, self.model, self._options), verbose=False
            )
        num_heads: dict[nn.Module, int] = {}
        for cut in self._choose_cuts(groups, cutoff):
            group = graph.get_pruning_group(twin_of[cut.layer], cut.function, cut.indices)
            if graph.check_pruning_group(group):
                for projection, heads_left in cut.num_heads.items():
                    num_heads[twin_of[projection]] = heads_left
                group.prune()
        update_attentions_(attentions, num_heads)
        return to_plain_network_(twin)


def _add_posteriors_(
    model: nn.Module, posterior: PosteriorSettings, example_inputs: Inputs, ignored: set[nn.Module]
) -> None:
    """Posteriors on all layers but the ignored ones, and gates on attentions where gates are asked for."""
    names = [name for name, module in model.named_modules() if module in ignored]
    posterior = posterior.model_copy(update={"exclude": (*posterior.exclude, *names)})
    attentions = [attention for attention in find_attentions(model) if attention.module.qkv not in ignored]
    sparsify_(model, posterior, example_inputs=example_inputs)
    if posterior.granularity != "weight":
        attach_gates_(attentions, posterior)


@contextmanager
def _undone_on_error(model: nn.Module) -> Iterator[None]:
    """Take the posteriors away again where Torch-Pruning, or the network that it runs, raises an error."""
    try:
        yield
    except Exception as error:  # whatever a forward of the user's own raises
        remove_posteriors_(model)
        if isinstance(error, SparseVDError):
            raise
        name = type(model).__name__
        raise TraceError(f"SparseVDPruner: Torch-Pruning cannot trace {name}: {describe_error(error)}") from error


def _log_alpha(share: float) -> float:
    """Log alpha of a channel whose signal has this share of its power."""
    if 0 < share < 1:
        return math.log(1 / share - 1)
    return math.copysign(math.inf, 0.5 - share)
