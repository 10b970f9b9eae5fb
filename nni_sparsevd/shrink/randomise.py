"""Networks whose comparison means something."""

import torch
from torch import nn


def randomise_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw norms, biases and layer scales at random, in place: fresh timm networks hide whole branches behind zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if not tensor.is_floating_point():
                    continue
                if name == "running_var":
                    tensor.uniform_(0.5, 1.5, generator=generator)
                elif sum(size > 1 for size in tensor.shape) <= 1:  # one number a channel, whatever its shape
                    centre = 1.0 if name in ("weight", "gamma") else 0.0
                    tensor.copy_(centre + 0.3 * torch.randn(tensor.shape, generator=generator))
                elif not tensor.any() and isinstance(tensor, nn.Parameter):
                    tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model
