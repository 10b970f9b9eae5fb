"""Repairs of NNI's `TransformersEvaluator`.  Not needed where NNI finds no Transformers."""

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import nni
from nni.common import is_traceable
from nni.compression.utils import evaluator
from torch import Tensor

from ...patching import Patch
from .repairs import repair

Tasks = list[Callable[[], Any]]


def _installed() -> bool:
    return bool(evaluator.TRANSFORMERS_INSTALLED)


def _trainer_takes(method: str, argument: str) -> bool:
    """Whether a method of the installed `Trainer` has this argument."""
    return _installed() and argument in inspect.signature(getattr(evaluator.HFTrainer, method)).parameters


@repair(since="transformers 4.39", needed=lambda: _trainer_takes("get_optimizer_cls_and_kwargs", "model"))
def transformers_default_optimizer(patch: Patch) -> None:
    """For a trainer without an optimizer traced by `nni.trace`, NNI replaces `Trainer.get_optimizer_cls_and_kwargs`,
    which has since got a second argument. The replacement fails, and stays in the class for every later Trainer of the
    process. After the repair the one trainer creates its default optimizer from a traced class, so NNI finds a traced
    optimizer.
    """
    init = evaluator.TransformersEvaluator._init_optimizer_helpers

    def init_optimizer_helpers(self: Any, pure_model: Any) -> None:
        trainer = self.traced_trainer
        if is_traceable(trainer.optimizer):
            init(self, pure_model)
            return
        choose = trainer.get_optimizer_cls_and_kwargs

        def choose_traced(*args: Any) -> tuple[Any, Any]:
            optimizer_class, settings = choose(*args)
            return nni.trace(optimizer_class), settings

        trainer.optimizer, trainer.get_optimizer_cls_and_kwargs = None, choose_traced
        try:
            trainer.create_optimizer()
            init(self, pure_model)
        finally:
            del trainer.get_optimizer_cls_and_kwargs
            trainer.optimizer = None  # NNI makes another optimizer for the wrapped model

    patch.set(evaluator.TransformersEvaluator, "_init_optimizer_helpers", init_optimizer_helpers)


@repair(since="transformers 4.46", needed=lambda: _trainer_takes("compute_loss", "num_items_in_batch"))
def transformers_loss(patch: Patch) -> None:
    """Transformers passes `num_items_in_batch` to `compute_loss`, and NNI's patched loss does not accept it. A loss
    computed with that number is the share of one batch in an accumulated step, and the Trainer does not divide it by
    the number of batches. After the repair the patch still gets a mean over the batch, so that what it adds counts once
    in a step.
    """

    def patch_loss(self: Any, change: Callable[[Tensor, Any], Tensor]) -> None:
        before = self.trainer.compute_loss

        def compute_loss(trainer: Any, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            result = before(model, inputs, return_outputs, **kwargs)
            loss, *outputs = result if return_outputs else (result,)
            batches = trainer.current_gradient_accumulation_steps if _is_share(trainer, model, **kwargs) else 1
            loss = change(loss * batches, inputs) / batches
            return (loss, *outputs) if return_outputs else loss

        self.trainer.compute_loss = MethodType(compute_loss, self.trainer)

    patch.set(evaluator.TransformersEvaluator, "patch_loss", patch_loss)


def _is_share(trainer: Any, model: Any, num_items_in_batch: Any = None) -> bool:
    """Whether a training loss is already scaled for gradient accumulation: the rule of `Trainer.training_step`."""
    if not model.training:
        return False
    if getattr(trainer, "loss_is_scaled_for_ga", None) is not None:
        return bool(trainer.loss_is_scaled_for_ga)
    counted = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
    return bool(counted or trainer.compute_loss_func is not None)


@repair(since="transformers 4.31", needed=_installed)
def transformers_step_tasks(patch: Patch) -> None:
    """NNI takes every trainer that has an attribute `deepspeed` for one that uses DeepSpeed. Every trainer has the
    attribute today, mostly as None. NNI also keeps the tasks in the class `PatchCallback`: the tasks of a second call,
    or of a second evaluator, replace the first and run twice. After the repair, without DeepSpeed, the tasks run around
    the step of the bound optimizer itself.
    """
    with_deepspeed = evaluator.TransformersEvaluator.patch_optimizer_step

    def patch_optimizer_step(self: Any, before_step_tasks: Tasks, after_step_tasks: Tasks) -> None:
        if self.trainer.is_deepspeed_enabled:
            with_deepspeed(self, before_step_tasks, after_step_tasks)
            return
        optimizer = self.trainer.optimizer
        step = optimizer.step

        def step_with_tasks(_: Any, *args: Any, **kwargs: Any) -> Any:
            for task in before_step_tasks:
                task()
            result = step(*args, **kwargs)
            for task in after_step_tasks:
                task()
            return result

        optimizer.step = MethodType(step_with_tasks, optimizer)

    patch.set(evaluator.TransformersEvaluator, "patch_optimizer_step", patch_optimizer_step)


@repair(since="transformers 4.30", needed=_installed)
def transformers_bound_optimizer(patch: Patch) -> None:
    """Training leaves Accelerate's wrapper in the place of the optimizer that NNI bound. Reverting the step then
    changes the wrapper, and the next training fails. After the repair the bound optimizer is put back at the end of a
    training.
    """
    train = evaluator.TransformersEvaluator.train

    def train_and_put_back(self: Any, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        optimizer = self.trainer.optimizer
        try:
            train(self, max_steps, max_epochs)
        finally:
            self.trainer.optimizer = optimizer

    patch.set(evaluator.TransformersEvaluator, "train", train_and_put_back)
