"""`SparseVDPruner`: a pruner of Torch-Pruning whose regulariser is the KL, and that can decide by itself."""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypedDict, Unpack

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ...convert import bake_, sparsify_
from ...errors import SettingError
from ...graph import Inputs, evaluation_mode
from ...measure import cost_function
from ...nn import ChannelGate, kl, named_posteriors, to_plain_network_
from ...regularize import (
    Arrival,
    Budget,
    BudgetSearch,
    Controller,
    SparseVDSettings,
    VarianceOptimizer,
    regularize_under_pressure_,
    weigh_by_macs_,
)
from .attention import attach_gates_, find_attentions, update_attentions_
from .importance import SparseVDImportance
from .scored import Scored


class Options(TypedDict, total=False):
    """What `BasePruner` takes besides; see there."""

    global_pruning: bool
    pruning_ratio_dict: dict[Any, float]
    max_pruning_ratio: float
    iterative_steps: int
    iterative_pruning_ratio_scheduler: Callable[[float, int], list[float]]
    ignored_layers: list[Any]
    round_to: int | None
    isomorphic: bool
    in_channel_groups: dict[nn.Module, int]
    out_channel_groups: dict[nn.Module, int]
    num_heads: dict[nn.Module, int]
    prune_num_heads: bool
    prune_head_dims: bool
    head_pruning_ratio: float
    head_pruning_ratio_dict: dict[nn.Module, float]
    customized_pruners: dict[Any, Any]
    unwrapped_parameters: Any
    root_module_types: list[type[nn.Module]]
    forward_fn: Callable[..., Any]
    output_transform: Callable[..., Any]


class SparseVDPruner(tp.pruner.BasePruner):  # type: ignore[misc]
    """Takes the place of `GroupNormPruner`: the same arguments and the same three calls in a training loop.

    The layers of `model` get posteriors, and with `settings.posterior.granularity` "gate" or "both" each coupled group
    a gate.  Between backward and step, `regularize(model)` adds the gradient of KL / N and moves the variances, which
    have an optimizer of their own.  `step()` cuts:

    - without a `pruning_ratio`, exactly the channels whose log alpha has reached the threshold (3), the best one of
      each group excepted;
    - with one, the least relevant, as every pruner of Torch-Pruning does;
    - with a `budget`, where the network comes closest to it.  In training, once an epoch, `update_regularizer()`
      presses the KL up or down so that the threshold itself gets there, and weighs it by MACs.

    After the last step the layers and their parameters are ordinary, and what attention remembers of its sizes is up
    to date; make a new optimizer then, as after every cut.

    `training_steps` is how often `regularize` will be called: the KL warms up over the first part of it, and the
    variances' rate falls to 0.  None: full KL and rate throughout.

    Raises `SettingError` for an option that Torch-Pruning does not have.
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
        unknown = set(options) - set(Options.__annotations__)
        if unknown:
            known = ", ".join(Options.__annotations__)
            raise SettingError(f"SparseVDPruner: {', '.join(sorted(unknown))} is no option; known are {known}")
        by_ratio = pruning_ratio is not None or "pruning_ratio_dict" in options
        if budget is not None and (by_ratio or not isinstance(example_inputs, Tensor)):
            raise SettingError("SparseVDPruner: a budget goes with one input tensor and without a pruning_ratio")
        self.settings = settings or SparseVDSettings()
        self._by_itself = not by_ratio
        self._training_steps, self._done = training_steps, 0
        self._attentions = find_attentions(model)
        # Torch-Pruning's own defaults for these are shared between all pruners of a process
        own: Options = {"num_heads": {one.module.qkv: one.heads for one in self._attentions},
                        "in_channel_groups": {}, "out_channel_groups": {}}  # fmt: skip
        given: Any = {**own, **options}
        ignored = {id(inner) for layer in given.get("ignored_layers") or () if isinstance(layer, nn.Module)
                   for inner in layer.modules()}  # fmt: skip
        names = [name for name, module in model.named_modules() if id(module) in ignored]
        posterior = self.settings.posterior
        chosen = posterior.model_copy(update={"exclude": (*posterior.exclude, *names)})
        sparsify_(model, chosen, example_inputs=example_inputs)
        if chosen.granularity != "weight":
            attach_gates_([one for one in self._attentions if id(one.module.qkv) not in ignored], chosen)
        with evaluation_mode(model):  # in which Torch-Pruning leaves a network that it has traced
            super().__init__(
                model, example_inputs, importance or SparseVDImportance(), pruning_ratio=pruning_ratio or 0.0, **given
            )
        self._variances = VarianceOptimizer.for_model(self.model, self.settings)
        self._example_inputs = example_inputs
        self.arrival: Arrival | None = None
        """How close the budget was met; after `step`."""
        self._controller = Controller(self.settings.posterior.threshold)
        self._search: BudgetSearch | None = None
        if budget is not None:
            assert isinstance(example_inputs, Tensor)
            self._search = BudgetSearch(budget, cost_function(budget.kind, example_inputs), self.model)
            if budget.kind != "parameters":
                weigh_by_macs_(self.model, example_inputs)

    def kl(self) -> Tensor:
        """KL of all posteriors from their priors, in nats: a scalar with gradient."""
        return kl(self.model)

    def update_regularizer(self) -> None:
        """Let the budget's controller look at the network; call it once an epoch.  Nothing without a budget."""
        if self._search is not None and self.arrival is None:
            progress = self._progress()
            cutoff, _ = self._edge(self._scored(), self._search)
            self._controller.react(_log_alpha(cutoff), 1.0 if progress is None else progress)

    def _progress(self) -> float | None:
        """The part of the training that is done; None where nobody has said how long it is."""
        return min(1.0, self._done / self._training_steps) if self._training_steps else None

    def regularize(self, model: nn.Module | None = None, loss: Tensor | None = None) -> None:
        """Add the gradient of weight * KL / N to what backward has left, and take one step of the variances.

        Call it between `loss.backward()` and `optimizer.step()`.  `model` and `loss` are those of Torch-Pruning's own
        pruners and not needed.
        """
        if self.settings.n_train is None:
            raise SettingError("SparseVDPruner: KL / N needs N: pass settings=SparseVD(n_train=...)")
        progress = self._progress()
        weight = self.settings.kl_weight_now(progress, self.settings.n_train)
        regularize_under_pressure_(self.model, weight, self._controller.pressure)
        self._variances.step(progress)
        self._done += 1

    def step(self, interactive: bool = False) -> Iterator[Any] | None:
        """Cut; with `interactive`, give back the groups to be pruned by the caller, who calls `finish` afterwards."""
        groups: Iterator[Any] | None = super().step(interactive)
        if groups is None:
            self._variances = VarianceOptimizer.for_model(self.model, self.settings)
            if self._by_itself or self.current_step >= self.iterative_steps:
                self.finish()
            else:
                self._attentions = update_attentions_(self._attentions, self.num_heads)
        return groups

    def finish(self) -> nn.Module:
        """Make the layers ordinary, masked as in evaluation mode and with the gates folded in; returns the model.

        A channel that has drowned and yet stays, for the sake of rounding or of other heads, is zero.
        """
        self._attentions = update_attentions_(self._attentions, self.num_heads)
        if self.arrival is not None:  # the budget's threshold is the one that counts
            for _, one in named_posteriors(self.model):
                if isinstance(one, ChannelGate):
                    one.threshold = self.arrival.log_alpha + 1e-4  # scores are rounded to float32
        return bake_(self.model)

    @torch.no_grad()
    def _prune(self) -> Iterator[Any]:
        if not self._by_itself:
            yield from super()._prune()
            return
        scored = self._scored()
        for one, indices, heads in self._cuts(scored, self._cutoff(scored)):
            group = self.DG.get_pruning_group(one.layer, one.function, indices)
            if self.DG.check_pruning_group(group):
                self.num_heads.update(heads)
                yield group

    def _cutoff(self, scored: list[Scored]) -> float:
        """The score up to which channels go: that of the threshold, or the one that meets the budget."""
        at_threshold = self.settings.share_at_threshold
        search = self._search
        if search is None:
            return at_threshold
        cost_at_threshold = search.cost(self._cut_copy(scored, at_threshold))
        cutoff, reached = self._edge(scored, search)
        self.arrival = Arrival(search.budget, search.dense, cost_at_threshold, reached, _log_alpha(cutoff))
        return cutoff

    def _edge(self, scored: list[Scored], search: BudgetSearch) -> tuple[float, float]:
        """(score up to which channels must go to meet the budget, cost then)."""
        scores = torch.cat([one.relevant.flatten() for one in scored])
        return search.find_cutoff(scores, functools.partial(self._cut_copy, scored))

    def _scored(self) -> list[Scored]:
        """All groups that have a posterior, with the score of each channel."""
        found = []
        for group in self.DG.get_all_groups(self.ignored_layers, self.root_module_types):
            attention, projections = self._is_atten_group(group)
            rooted = self._downstream_node_as_root_if_attention(group) if attention else group
            score = None if rooted is None else self.importance.scores(rooted)
            if score is not None:
                root, places = rooted[0].dep, self._get_channel_groups(rooted)
                relevant = score.view(places, -1).cpu()
                found.append(Scored(root.target.module, root.handler, relevant, tuple(projections)))
        return found

    def _cuts(self, scored: list[Scored], cutoff: float) -> list[tuple[Scored, list[int], dict[nn.Module, int]]]:
        """(group, indices of what goes, heads that are left of its attention)."""
        cuts = [(one, *one.removable(cutoff, self.round_to)) for one in scored]
        return [(one, indices, dict.fromkeys(one.projections, heads)) for one, indices, heads in cuts if indices]

    def _cut_copy(self, scored: list[Scored], cutoff: float) -> nn.Module:
        """An ordinary copy of the network, cut there."""
        twin = copy.deepcopy(self.model)
        stands_for = dict(zip(self.model.modules(), twin.modules(), strict=True))
        attentions = find_attentions(twin)
        with torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(twin, self._example_inputs, verbose=False)
        num_heads: dict[nn.Module, int] = {}
        for one, indices, heads in self._cuts(scored, cutoff):
            group = graph.get_pruning_group(stands_for[one.layer], one.function, indices)
            if graph.check_pruning_group(group):
                num_heads.update({stands_for[projection]: left for projection, left in heads.items()})
                group.prune()
        update_attentions_(attentions, num_heads)
        return to_plain_network_(twin)


def _log_alpha(share: float) -> float:
    """Log alpha of a channel whose signal is this share of its power."""
    return math.log(1 / share - 1) if 0 < share < 1 else math.copysign(math.inf, 0.5 - share)
