"""Sparse VD in any training loop: what callbacks and hand-written loops share."""

import itertools
import warnings
from collections.abc import Sized

import torch
from torch import Tensor, nn

from ..convert import sparsify_
from ..errors import SettingError, SparseVDWarning
from ..graph import Inputs
from ..masks import compute_masks, count_weights
from ..nn import kl, regularize_
from ..settings import MaskSettings
from .first_step import warn_before_first_step
from .settings import SparseVDSettings, settings_or_defaults
from .step_hooks import call_before_steps, holds_any, read_loss_scale
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
        SettingError: `settings` is something else, or a pattern in `settings.posterior` matches no layer.
    """

    def __init__(
        self, model: nn.Module, settings: SparseVDSettings | None = None, example_inputs: Inputs | None = None
    ) -> None:
        self.settings = settings_or_defaults("Regularizer", settings)
        self.model = sparsify_(model, self.settings.posterior, example_inputs=example_inputs)
        self._variances: VarianceOptimizer | None = None
        self._has_begun = False
        self._attachments = 0
        """How often `attach_` was called: the hook of the last call alone does anything.

        A handle, to remove the hook of the call before, could not be pickled.
        """

    def _current_variances(self) -> VarianceOptimizer:
        """The optimizer of the variances that the network has at this moment."""
        # 1. Not made in the constructor: until the first step `fully_shard` may replace the parameters by others.
        # 2. Made again after a cut, which replaces them, too: the optimizer would go on moving those before.
        if self._variances is None or not self._variances.holds_those_of(self.model):
            self._variances = VarianceOptimizer.for_model(self.model, self.settings)
        return self._variances

    def regularize(self, progress: float, n_train: int | None = None, *, loss_scale: float = 1.0) -> None:
        """Add the gradient of weight * KL / N to what backward has left, and take one step of the variances.

        The first call warns where the loss cannot have said anything about the variances.

        Args:
            progress: The part of the training that is done, from 0 to 1; above 1 it counts as 1.
            n_train: The number N of training samples, where `settings.n_train` does not say it.
            loss_scale: The factor of a loss scaler (float16) that the gradients still carry, else 1.

        Raises:
            SettingError: Neither `settings.n_train` nor `n_train` says N, or `progress` is below 0 or NaN.
            ModelError: The network has no posterior.
        """
        n_train = self.settings.n_train or n_train
        if not n_train:
            raise SettingError("KL / N needs the number of training samples: pass SparseVDSettings(n_train=...)")
        if not progress >= 0:  # which NaN is not, either
            raise SettingError(f"progress = {progress} has to be a part of the training, from 0 to 1")
        progress = min(progress, 1.0)
        if not self._has_begun:
            warn_before_first_step("Regularizer", self.model)
            self._has_begun = True
        # The KL first: the variances' step needs its gradient, and it sets their gradients to None.
        regularize_(self.model, self.settings.kl_weight_now(progress, n_train, loss_scale=loss_scale))
        self._current_variances().step(progress)

    def kl(self) -> Tensor:
        """The KL of all posteriors from their priors, in nats: a scalar without gradient."""
        with torch.no_grad():
            return kl(self.model)

    def attach_(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Call `regularize` before each step of `optimizer`, for a training loop that is not to be changed.

        A second call takes the place of the first, for a second training or another optimizer. Where several optimizers
        step in turn, attach to the one that steps last. A step with a closure raises a SettingError: see
        `call_before_steps`.

        Args:
            optimizer: The optimizer of the weights; a warning says where it has none of them.
            steps: How many steps the training takes.

        Raises:
            SettingError: `steps` is below 1.
        """
        if steps < 1:
            raise SettingError(f"Regularizer.attach_: steps = {steps} has to be at least 1")
        if not holds_any(optimizer, self.model.parameters()):
            warnings.warn(
                f"Regularizer.attach_: this {type(optimizer).__name__} has no parameter of the network: make it of "
                "model.parameters(), after anything that replaces them",
                SparseVDWarning,
                stacklevel=2,
            )
        self._attachments += 1
        attachment, steps_done = self._attachments, itertools.count()

        def regularize_at_step() -> None:
            if attachment == self._attachments:
                self.regularize(next(steps_done) / steps, loss_scale=read_loss_scale(optimizer))

        call_before_steps(optimizer, regularize_at_step)

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
        return self._current_variances().state()

    def load_state_(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` has returned.

        Args:
            state: "place.key" -> tensor.

        Raises:
            FileFormatError: The state is that of another network.
        """
        self._current_variances().load_state_(state)


def count_samples(loader: object) -> int | None:
    """The number of samples that a data loader goes through in an epoch; None where the loader does not know it."""
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None
