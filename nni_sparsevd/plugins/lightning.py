"""Sparse VD in a training of Lightning: a callback."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..errors import SettingError
from ..graph import Inputs
from ..regularize import Regularizer, SparseVDSettings, count_samples

try:
    from pytorch_lightning import Callback, LightningModule, Trainer
except ImportError as error:
    raise SettingError(f"{error}: pip install 'nni_sparsevd[evaluators]'") from error


class SparseVDCallback(Callback):
    """`Trainer(callbacks=[SparseVDCallback(module)])`: the layers of `model` learn which of their weights are noise.

    Make it before the trainer.  `model` is the Lightning module, or the part of it that is to be pruned; gates need
    `example_inputs`.  The module's own optimizers stay with the weights.  Logs `sparsevd_kl` and `sparsevd_sparsity`
    after each epoch.  Afterwards `bake_`, `compute_masks` and `shrink` do with `model` what they do with any.

    The KL warms up, and the variances' rate falls to 0, over the steps that the trainer expects.  Raises `SettingError`
    where that is without end or where the number of samples is not known and `settings.n_train` does not say it.
    """

    def __init__(
        self, model: nn.Module, settings: SparseVDSettings | None = None, example_inputs: Inputs | None = None
    ) -> None:
        self._regularizer = Regularizer(model, settings, example_inputs)
        self._remembered: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        if not 0 < total < float("inf"):
            raise SettingError(f"how long? the trainer expects {total} steps: give it max_steps or max_epochs")
        if self._remembered:  # only now are the parameters on their device
            self._regularizer.load_state_(self._remembered)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if optimizer is not trainer.optimizers[0]:  # once a step, where a module has several
            return
        progress = trainer.global_step / trainer.estimated_stepping_batches
        self._regularizer.regularize(progress, count_samples(trainer.train_dataloader))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log_dict({"sparsevd_kl": self._regularizer.kl(), "sparsevd_sparsity": self._regularizer.sparsity()})

    def state_dict(self) -> dict[str, Any]:
        return self._regularizer.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._remembered = state_dict
