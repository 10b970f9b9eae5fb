"""A network as one of several processes trains it."""

import warnings
from typing import cast, final

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..masks import Masks, apply_masks_
from .sharding import broadcast_buffers_, gather_shards_, shard_copy, shard_like


@final
class Learner:
    """A network in training: alone, as one of equal copies (DDP), or split among the processes (FSDP2).

    Attributes:
        model: The whole network. When it is split, it is up to date after `gather_` only.
        trained: The network whose parameters the optimizer moves: `model`, or its copy made of shards.
        forward: What computes the outputs in training; its backward pass averages gradients over the processes.
    """

    def __init__(
        self, model: nn.Module, accelerator: Accelerator, *, shard: bool, compile_with: str | None = None
    ) -> None:
        """Move `model` to the device of this process, and split it there if it is to `shard`.

        Args:
            model: The network.
            accelerator: The processes.
            shard: Whether they split the network.
            compile_with: Backend of `torch.compile` for `forward`; None: it is not compiled.
        """
        self._accelerator = accelerator
        self._several = accelerator.num_processes > 1
        self._sharded = shard and self._several
        self.model = model.to(accelerator.device)
        self.trained = shard_copy(model) if self._sharded else model
        self._compile_with = compile_with
        self.forward = self._wrap()

    def _wrap(self) -> nn.Module:
        # Not `accelerator.prepare_model`: it would have the network compute in mixed precision wherever it is called,
        # and what is validated outside of training has to be what ships.
        wrapped = self.trained
        if self._several and not self._sharded:
            device = self._accelerator.device
            # The gradients of 1x1 convolutions whose weights lie channels last have other strides than DDP's buckets
            # along axes of one element, where strides mean nothing.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            wrapped = DistributedDataParallel(self.trained, None if device.type == "cpu" else [device])
        if self._compile_with is None:
            return wrapped
        # What an earlier stage has compiled counts against torch's limit, beyond which nothing more is compiled.
        torch.compiler.reset()
        return cast(nn.Module, torch.compile(wrapped, backend=self._compile_with))

    def wrap_again(self) -> None:
        """Renew `forward` after `model` has changed its sizes: DistributedDataParallel holds the old parameters."""
        self.forward = self._wrap()

    def gather_(self) -> None:
        """Bring `model` up to date with what the processes have learned; all of them have to call it."""
        if self._sharded:
            gather_shards_(self.model, self.trained)

    def agree_on_statistics_(self) -> None:
        """Give every process the running statistics of the first: each has those of the images that it saw."""
        if self._several:
            broadcast_buffers_(self.model)

    def place_masks(self, masks: Masks) -> Masks:
        """The masks on this process's device, cut to its shards of the parameters."""
        placed: Masks = {}
        for name, targets in masks.items():
            module = self.trained.get_submodule(name)
            placed[name] = {}
            for key, mask in targets.items():
                parameter = module.get_parameter(key)
                placed[name][key] = shard_like(mask.to(parameter.device), parameter)
        return placed

    def apply_masks_(self, placed_masks: Masks) -> None:
        """Zero what the masks from `place_masks` remove."""
        apply_masks_(self.trained, placed_masks)
