"""Sparse VD in any training loop: what callbacks and hand-written loops share."""

import itertools
from collections.abc import Sized
from functools import cached_property

import torch
from torch import Tensor, nn

from ..convert import sparsify_
from ..errors import SettingError
from ..graph import Inputs
from ..masks import compute_masks, count_weights
from ..nn import kl, regularize_
from ..settings import MaskSettings
from .settings import SparseVDSettings
from .step_hooks import call_before_steps
from .variances import VarianceOptimizer


class Regularizer:
    """Posteriors on a network, the KL that pulls at them, and the optimizer that moves their variances.

    The layers of `model` get posteriors in place, so make the regularizer before the optimizer of the weights and
    before anything that wraps the network. Then call `regularize` once a step, between `loss.backward()` and
    `optimizer.step()`; or call `attach_` once.

    Under DistributedDataParallel all processes hold the same gradients between backward and step, and add the same to
    them. Under `fully_shard` (FSDP2) each process regularizes its part of the parameters.

    Args:
        model: The network, changed in place.
        settings: How posteriors are made and trained; None: the defaults.
        example_inputs: What the network is called with; needed where `settings.posterior.granularity` asks for gates.

    Raises:
        ModelError: No layer can have a posterior, `model` has posteriors already, or gates are asked for and
            `example_inputs` are missing.
        SettingError: A pattern in `settings.posterior` matches no layer.
    """

    def __init__(
        self, model: nn.Module, settings: SparseVDSettings | None = None, example_inputs: Inputs | None = None
    ) -> None:
        self.settings = settings or SparseVDSettings()
        self.model = sparsify_(model, self.settings.posterior, example_inputs=example_inputs)

    @cached_property
    def _variances(self) -> VarianceOptimizer:
        """The optimizer of the variances, made at the first step."""
        # Not in the constructor: until the first step `fully_shard` may replace the parameters by others.
        return VarianceOptimizer.for_model(self.model, self.settings)

    def regularize(self, progress: float, n_train: int | None = None) -> None:
        """Add the gradient of weight * KL / N to what backward has left, and take one step of the variances.

        Args:
            progress: The part of the training that is done, from 0 to 1; above 1 it counts as 1.
            n_train: The number N of training samples, where `settings.n_train` does not say it.

        Raises:
            SettingError: Neither `settings.n_train` nor `n_train` says N.
        """
        n_train = self.settings.n_train or n_train
        if not n_train:
            raise SettingError("KL / N needs the number of training samples: pass SparseVDSettings(n_train=...)")
        progress = min(progress, 1.0)
        # The KL first: the variances' step needs its gradient, and it sets their gradients to None.
        regularize_(self.model, self.settings.kl_weight_now(progress, n_train))
        self._variances.step(progress)

    def kl(self) -> Tensor:
        """The KL of all posteriors from their priors, in nats: a scalar without gradient."""
        with torch.no_grad():
            return kl(self.model)

    def attach_(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Call `regularize` before each step of `optimizer`, for a training loop that is not to be changed.

        A loss scaler (float16) has unscaled the gradients by then, unless the optimizer is a fused one. A step with a
        closure raises a SettingError: see `call_before_steps`.

        Args:
            optimizer: The optimizer of the weights.
            steps: How many steps the training takes.
        """
        steps_done = itertools.count()

        call_before_steps(optimizer, lambda: self.regularize(next(steps_done) / steps))

    def sparsity(self) -> float:
        """The share of weights that the posterior would remove at this moment.

        All weights of more than one dimension are counted, those of layers without a posterior included.

        Returns:
            A share from 0 to 1.
        """
        # An empty layer is no error here: the user wants to see it in the log.
        kept, total = count_weights(self.model, compute_masks(self.model, MaskSettings(allow_empty=True)))
        return 1 - kept / total

    def state(self) -> dict[str, Tensor]:
        """The memory of the variances' optimizer; the posteriors themselves are in the model's state dict."""
        return self._variances.state()

    def load_state_(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` has returned.

        Args:
            state: "place.key" -> tensor.

        Raises:
            FileFormatError: The state is that of another network.
        """
        self._variances.load_state_(state)


def count_samples(loader: object) -> int | None:
    """The number of samples that a data loader goes through in an epoch; None where the loader does not know it."""
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None
