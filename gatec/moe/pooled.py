"""What routers see of images: means of channels, which are much alike in all images, less their running mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from gatec.moe.router import summed

MOMENTUM = 0.1


class Pooled(nn.Module):
    """x[images, channels, positions ...], or one image, to [images, channels]: means less the running mean of all images,
    which training keeps; at first it is 0.

    Without it one direction that all images share decides for all of them, and they choose the same experts.
    """

    mean: Tensor
    batches: Tensor

    def __init__(self, channels: int, positions: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.positions = positions
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float32, device=device))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long, device=device))

    def forward(self, x: Tensor) -> Tensor:
        # Counted from the front: onnxruntime keeps reduced dimensions of no images where they are counted from behind.
        single = x.dim() == self.positions + 1
        means = x.mean(tuple(range(x.dim() - self.positions, x.dim())))
        means = means.unsqueeze(0) if single else means
        if self.training and len(means) and not isinstance(x, FakeTensor):
            self.follow(means)
        return means - self.mean.to(x.dtype)

    @torch.no_grad()
    def follow(self, means: Tensor) -> None:
        """The mean of all batches at first, and later one that forgets."""
        self.batches += 1
        ones = means.new_ones(len(means), 1, dtype=self.mean.dtype)
        total = summed(torch.cat([means.to(self.mean.dtype), ones], 1).sum(0))
        self.mean.lerp_(total[:-1] / total[-1], (1 / self.batches).clamp_min(MOMENTUM).to(self.mean.dtype))
