"""Sparse VD's part in a training that the user's evaluator runs: KL in the loss, steps of the variances, masks."""

import warnings
from collections.abc import Callable, Sized
from typing import Any

import torch
from nni.compression.utils.evaluator import Evaluator, LightningEvaluator, TransformersEvaluator
from torch import Tensor

from ...errors import SettingError, SparseVDWarning
from ...graph import name_leaves
from ...regularize import (
    RateGroups,
    SparseVDSettings,
    VarianceOptimizer,
    add_kl_to_loss,
    count_samples,
    warn_of_half_precision,
)

ENOUGH = 0.9
"""The part of its steps that a training may take where their number is worked out from epochs: loaders round."""


class Learning:
    """Joins one training.

    The weights stay with the user's optimizer.  The variances and gates have an optimizer of their own, as the scores
    of NNI's Movement and Slim pruners have.  It steps after the user's optimizer, because Lightning computes the
    gradients inside that optimizer's step.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        settings: SparseVDSettings,
        kl: Callable[[], Tensor],
        rated: RateGroups,
        schedule: tuple[int, int],
        epochs: int | None,
        renew_masks: Callable[[bool], None],
    ) -> None:
        """Patch the evaluator's loss and optimizer step.

        Args:
            evaluator: Bound to the wrapped model.
            settings: Rates, warm-up and the weight of the KL.
            kl: Computes the KL of all posteriors, a scalar in nats.
            rated: The parameters to learn, with multiples of the learning rate.
            schedule: (interval, times): `renew_masks` is called every `interval` steps, `times` times.  An interval
                below 1 means one mask, at the end of `epochs`.
            epochs: Length of the training where it is counted in epochs.
            renew_masks: Called with True at the last time.

        Raises:
            SettingError: Neither steps nor epochs are known.
        """
        self._interval, self._times = schedule
        if self._interval < 1 and epochs is None:
            raise SettingError("SparseVDPruner: how long? give training_steps=, compress(max_steps=...), or a schedule")
        self._settings, self._kl, self._renew_masks = settings, kl, renew_masks
        self._evaluator, self._epochs, self._step = evaluator, epochs, 0
        self._n_train: int | None = None
        self._estimated = self._interval < 1  # the number of steps will be worked out from the epochs
        self._variances = VarianceOptimizer(rated, settings.learning_rate)
        warn_of_half_precision("SparseVDPruner", [variance for variances, _ in rated for variance in variances])
        evaluator.patch_loss(self._add_kl)
        evaluator.patch_optimizer_step(before_step_tasks=[], after_step_tasks=[self._after_step])

    @property
    def _last_step(self) -> int:
        """Steps until the last masks."""
        return self._interval * self._times

    def _add_kl(self, loss: Tensor, batch: Any) -> Tensor:
        """Loss + weight * KL / N.

        At weight 0 too: DistributedDataParallel waits for a gradient of every parameter that it knows.
        """
        if not loss.requires_grad:  # Transformers asks in evaluation, too
            return loss
        if self._n_train is None:
            self._n_train = self._count_samples(batch)
            self._warn_of_evaluation_mode()
        return add_kl_to_loss(loss, self._kl(), self._kl_weight_now(self._n_train))

    def _warn_of_evaluation_mode(self) -> None:
        model: Any = self._evaluator.model
        wrapped = [module for module in model.modules() if hasattr(module, "_nni_wrapper")]
        if wrapped and not any(module.training for module in wrapped):
            warnings.warn(
                "SparseVDPruner: the network trains in evaluation mode, so it computes without noise, and the loss "
                "says nothing about the variances: call model.train() in the training function",
                SparseVDWarning,
                stacklevel=2,
            )

    def _count_samples(self, batch: Any) -> int:
        """N of KL / N.  Where only the number of epochs is known, this also counts the steps until the masks."""
        known = self._settings.n_train or _known_size(self._evaluator)
        if self._epochs is not None and self._estimated:
            self._interval = _known_steps(self._evaluator) or self._estimate_steps(self._epochs, known, batch)
        if known is not None:
            return known
        samples = self._last_step * _batch_size(batch)
        warnings.warn(
            f"SparseVDPruner: the size of the training set is not known, so N = {samples}, the samples that this "
            "training will see. If it sees them more than once, the KL weighs too little: pass "
            "SparseVDSettings(n_train=...)",
            SparseVDWarning,
            stacklevel=2,
        )
        return samples

    def _estimate_steps(self, epochs: int, known: int | None, batch: Any) -> int:
        """Steps of so many epochs in a training function, which does not say how many steps an epoch has."""
        if known is None:
            raise SettingError(
                "SparseVDPruner: how many steps has an epoch? pass SparseVDSettings(n_train=...), or give "
                "training_steps="
            )
        return max(1, epochs * (known // _batch_size(batch)))

    def _kl_weight_now(self, n_train: int) -> float:
        """The weight of the KL rises in the warm-up, and is 0 after the last masks."""
        if self._step >= self._last_step:
            return 0.0
        return self._settings.kl_weight_now(self._step / self._last_step, n_train)

    def _after_step(self) -> None:
        if self._step >= self._last_step:  # the masks are final, and the training goes on with the weights alone
            return
        self._variances.step(self._step / self._last_step)
        self._step += 1
        if self._step % self._interval == 0:
            self._renew_masks(self._step == self._last_step)

    def warn_if_cut_short(self) -> None:
        """Warn where the KL had no part in the training, or only in its beginning; no host says so.

        A trainer's own limit may end a training before the steps that were asked for.  A training function may take
        fewer steps in an epoch than there are batches, or compute the loss by itself.
        """
        if self._n_train is None:
            warnings.warn(
                "SparseVDPruner: the training has never called the training_step that it was given, so the posterior "
                "has learned nothing, and the masks come from magnitudes",
                SparseVDWarning,
                stacklevel=2,
            )
        elif self._step < self._last_step * (ENOUGH if self._estimated else 1):
            warnings.warn(
                f"SparseVDPruner: the training ended after {self._step} of {self._last_step} steps, so the masks come "
                "from a posterior that has not settled; check the limits of the trainer itself, or pass "
                "training_steps=",
                SparseVDWarning,
                stacklevel=2,
            )


def _known_size(evaluator: Evaluator) -> int | None:
    """Samples in the training set, where the evaluator holds it and it has a length; asked during training."""
    if isinstance(evaluator, LightningEvaluator):
        return count_samples(evaluator.model.trainer.train_dataloader)
    if isinstance(evaluator, TransformersEvaluator) and isinstance(evaluator.trainer.train_dataset, Sized):
        return len(evaluator.trainer.train_dataset)
    return None


def _known_steps(evaluator: Evaluator) -> int | None:
    """Optimizer steps of the training, where the evaluator's trainer counts them; asked during training.

    A trainer knows what nobody else does: how many batches it accumulates for a step, and what its limits are.
    """
    if isinstance(evaluator, LightningEvaluator):
        steps = evaluator.model.trainer.estimated_stepping_batches
        return int(steps) if 0 < steps < float("inf") else None
    if isinstance(evaluator, TransformersEvaluator):
        return int(evaluator.trainer.state.max_steps)
    return None


def _batch_size(batch: Any) -> int:
    """Samples of a batch, over all ranks."""
    tensors = [leaf for _, leaf in name_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors:
        raise SettingError(
            "SparseVDPruner: found no tensor in a batch to count samples by; pass SparseVDSettings(n_train=...) and "
            "training_steps="
        )
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return len(tensors[0]) * ranks
