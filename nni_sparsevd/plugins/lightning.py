"""Sparse VD in a training of Lightning: a callback."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..errors import SettingError
from ..graph import Inputs
from ..regularize import Regularizer, SparseVDSettings, count_samples, read_loss_scale

try:
    from pytorch_lightning import Callback, LightningModule, Trainer
except ImportError as error:
    raise SettingError(f"{error}: pip install 'nni_sparsevd[evaluators]'") from error


class SparseVDCallback(Callback):
    """`Trainer(callbacks=[SparseVDCallback(module)])`: the layers of `model` learn which of their weights are noise.

    Make the callback before the trainer: it gives the layers their posteriors. The module's own optimizers stay with
    the weights; the KL's gradient is added before each of their steps, and the variances have an optimizer of their
    own. The KL warms up, and the learning rate of the variances falls to 0, over the steps that the trainer expects.

    After each epoch `sparsevd_kl` (in nats) and `sparsevd_sparsity` (the share of weights that would be removed) are
    logged. The trainer's checkpoints hold the state of the variances' optimizer, and training resumes with it. With
    several optimizers, the KL joins the steps of the first, and each is expected to step once a batch.
    Afterwards `bake_`, `compute_masks` and `shrink` do with `model` what they do with any variational network.

    Args:
        model: The Lightning module, or the part of it that is to be pruned; changed in place.
        settings: How posteriors are made and trained; None: the defaults. Where `n_train` is missing, the trainer's
            data loader is asked.
        example_inputs: What `model` is called with; needed where `settings.posterior.granularity` asks for gates.

    Raises:
        ModelError: No layer can have a posterior, `model` has posteriors already, or gates are asked for and
            `example_inputs` are missing.
        SettingError: In training: the trainer's number of steps has no end, or nobody knows the number of samples.
    """

    def __init__(
        self, model: nn.Module, settings: SparseVDSettings | None = None, example_inputs: Inputs | None = None
    ) -> None:
        self._regularizer = Regularizer(model, settings, example_inputs)
        self._loaded_state: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the training has an end, and put back the state of a checkpoint."""
        total = trainer.estimated_stepping_batches
        if not 0 < total < float("inf"):
            raise SettingError(
                f"SparseVDCallback: the trainer expects {total} steps, and the KL's warm-up needs their number: give "
                "the trainer max_steps or max_epochs"
            )
        # Why not in `load_state_dict`: Lightning calls that before it has moved the parameters to their device, and the
        # variances' optimizer would be made of the parameters of that moment.
        if self._loaded_state:
            self._regularizer.load_state_(self._loaded_state)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the KL's gradient and move the variances, once a step."""
        if optimizer is not trainer.optimizers[0]:  # a module with several optimizers comes here with each of them
            return
        progress = trainer.global_step / _count_steps(trainer)
        loss_scale = read_loss_scale(optimizer, getattr(trainer.precision_plugin, "scaler", None))
        self._regularizer.regularize(progress, count_samples(trainer.train_dataloader), loss_scale=loss_scale)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log KL and sparsity."""
        pl_module.log_dict({"sparsevd_kl": self._regularizer.kl(), "sparsevd_sparsity": self._regularizer.sparsity()})

    def state_dict(self) -> dict[str, Any]:
        """The state of the variances' optimizer, for the trainer's checkpoint."""
        return self._regularizer.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until training starts."""
        self._loaded_state = state_dict


def _count_steps(trainer: Trainer) -> float:
    """The steps that `trainer.global_step` will have counted at the end: those of all optimizers together."""
    # The trainer's estimate is of batches, or its `max_steps` where that ends the training earlier.
    steps = trainer.estimated_stepping_batches * len(trainer.optimizers)
    return steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)
