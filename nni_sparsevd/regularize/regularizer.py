"""Sparse VD in anyone's training loop: what callbacks and hand-written loops share."""

import itertools
from collections.abc import Sized
from functools import cached_property

import torch
from torch import Tensor, nn

from ..convert import sparsify_
from ..errors import SettingError
from ..graph import Inputs
from ..masks import compute_masks, weight_counts
from ..nn import kl, regularize_
from ..recipe import MaskSettings
from .settings import SparseVDSettings
from .variances import Variances


class Regularizer:
    """Posteriors on a network, the KL that pulls at them, and the optimizer that moves their variances.

    The layers of `model` get posteriors in place, so make it before the optimizer and before what wraps the network;
    gates need `example_inputs`.  Then one call of `regularize` between `loss.backward()` and `optimizer.step()`.  Under
    DistributedDataParallel the gradients are the same in all processes by then, and so is what is added to them; under
    `fully_shard` (FSDP2) each process regularises its part.
    """

    def __init__(
        self, model: nn.Module, settings: SparseVDSettings | None = None, example_inputs: Inputs | None = None
    ) -> None:
        self.settings = settings or SparseVDSettings()
        self.model = sparsify_(model, self.settings.posterior, example_inputs=example_inputs)

    @cached_property
    def _variances(self) -> Variances:
        """Made at the first step: until then `fully_shard` may put other parameters in the place of these."""
        return Variances.of(self.model, self.settings)

    def regularize(self, progress: float, n_train: int | None = None) -> None:
        """Add the gradient of weight * KL / N to what backward has left, and take one step of the variances.

        `progress` is the part of the training that is done, from 0 to 1, where it stays; N is `n_train`, unless the
        settings say it.  Raises `SettingError` where nobody does.
        """
        n = self.settings.n_train or n_train
        if not n:
            raise SettingError("KL / N needs the number of training samples: pass settings=SparseVD(n_train=...)")
        progress = min(progress, 1.0)
        regularize_(self.model, self.settings.kl_coefficient * self.settings.ramp(progress) / n)
        self._variances.step(1 - progress)

    def kl(self) -> Tensor:
        """The KL now, in nats: a scalar without gradient."""
        with torch.no_grad():
            return kl(self.model)

    def join_(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Call `regularize` before each of the `steps` steps of `optimizer`, in a loop that nobody wants to touch.

        A loss scaler (float16) has unscaled the gradients by then, unless the optimizer is a fused one.
        """
        done = itertools.count()

        def before(*_: object) -> None:
            self.regularize(next(done) / steps)

        optimizer.register_step_pre_hook(before)

    def sparsity(self) -> float:
        """Share of the weights that would go now, among all weights of more than one dimension."""
        kept, total = weight_counts(self.model, compute_masks(self.model, MaskSettings(allow_empty=True)))
        return 1 - kept / total

    def state(self) -> dict[str, Tensor]:
        """What the variances' optimizer remembers; the posteriors themselves are in the model's state dict."""
        return self._variances.state()

    def load_state_(self, state: dict[str, Tensor]) -> None:
        """Put it back; raises `FileFormatError` where it is another network's."""
        self._variances.load_state_(state)


def samples_of(loader: object) -> int | None:
    """How many samples a data loader goes through in an epoch; None where it does not know."""
    found = getattr(loader, "dataset", None)
    return len(found) if isinstance(found, Sized) else None
