"""Repairs of NNI's `LightningEvaluator`.  Not needed where NNI finds no Lightning."""

from collections.abc import Callable
from typing import Any

from nni.compression.utils import evaluator
from torch import Tensor

from ...patching import Patch
from .repairs import repair


def _fit_loop() -> Any:
    return evaluator.pl.loops._FitLoop


@repair(
    since="pytorch-lightning 2.0",
    needed=lambda: evaluator.LIGHTNING_INSTALLED and _fit_loop().max_steps.fset is None,
)
def lightning_max_steps(patch: Patch) -> None:
    """NNI sets `trainer.fit_loop.max_steps` to train for a number of steps, but Lightning removed the setter. The
    repair brings the setter back. It passes the number on to the loop over batches.
    """

    def set_max_steps(loop: Any, steps: int) -> None:
        loop.epoch_loop.max_steps = steps

    patch.set(_fit_loop(), "max_steps", _fit_loop().max_steps.setter(set_max_steps))


@repair(since="NNI 3.0", needed=lambda: bool(evaluator.LIGHTNING_INSTALLED))
def lightning_training_step(patch: Patch) -> None:
    """Lightning passes `batch_idx` to every `training_step` whose signature has room for it. NNI's patched step accepts
    any arguments, so a module's own `training_step(self, batch)` gets one too many. After the repair the patched step
    shows the signature of the module's own.
    """
    patch_loss = evaluator.LightningEvaluator.patch_loss

    def patch_loss_keeping_signature(self: Any, change: Callable[[Tensor, Any], Tensor]) -> None:
        step = self.model.training_step
        patch_loss(self, change)
        # Lightning looks through one wrapper only, and a loss can be patched twice, so every patched step points at
        # the module's own.
        self.model.training_step.__func__.__wrapped__ = getattr(step, "__wrapped__", step)

    patch.set(evaluator.LightningEvaluator, "patch_loss", patch_loss_keeping_signature)
