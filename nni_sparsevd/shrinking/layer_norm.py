"""A layer norm that remembers the channels which it lost: their number, their sum and the sum of their squares."""

import torch
from torch import Tensor, nn


class RememberingLayerNorm(nn.LayerNorm):
    """Layer norm over n channels of which only n - r arrive; the other r were constants and have been removed.

    With the sum S1 of the removed constants and the sum S2 of their squares,

        mean = (sum x + S1) / n,    var = (sum (x - mean)^2 + S2 - 2 mean S1 + r mean^2) / n,

    where the sums go over what arrives: it is normalized as if all n channels were there.
    """

    removed_sum: Tensor
    removed_squares: Tensor

    def __init__(self, norm: nn.LayerNorm, channel_dim: int, removed: Tensor) -> None:
        """Take the place of a layer norm, with its weight and bias.

        Args:
            norm: The layer norm, still with all its channels; its weight and bias are cut afterwards.
            channel_dim: The dimension of its input that holds the channels, -1 or 1.
            removed: The constants that the removed channels carried, shape (removed channels,).
        """
        super().__init__(norm.normalized_shape, norm.eps, elementwise_affine=False)  # type: ignore[arg-type]
        self.weight, self.bias = norm.weight, norm.bias
        self.elementwise_affine = norm.elementwise_affine
        self.channel_dim, self.removed = channel_dim, removed.numel()
        like = norm.weight if norm.weight is not None else torch.zeros(())
        self.register_buffer("removed_sum", removed.double().sum().to(like.detach()))
        self.register_buffer("removed_squares", removed.double().square().sum().to(like.detach()))
        self.train(norm.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, channel_dim={self.channel_dim}, removed={self.removed}"

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` over its channels; it has them at `channel_dim`, and keeps its shape."""
        dim, count = self.channel_dim, x.shape[self.channel_dim] + self.removed
        mean = (x.sum(dim, keepdim=True) + self.removed_sum) / count
        centered = x - mean
        removed_deviations = self.removed_squares - 2 * mean * self.removed_sum + self.removed * mean.square()
        variance = (centered.square().sum(dim, keepdim=True) + removed_deviations) / count
        y = centered * (variance + self.eps).rsqrt()
        shape = (-1,) if dim == -1 else (-1, *(1,) * (x.dim() - 2))
        if self.weight is not None:
            y = y * self.weight.view(shape)
        return y if self.bias is None else y + self.bias.view(shape)
