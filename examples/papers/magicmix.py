"""MagicMix: a concept is mixed into an image while its noise is taken away.

Liew, Yan, Zhou and Feng, "MagicMix: Semantic Mixing with Diffusion Models", 2022, arXiv:2210.16056.

    K_max >= t > K_min:   z_t <- nu * z^prompt_t + (1 - nu) * z^layout_t
    else:                 z_t is the prompt's alone

z: batch, channels, height, width, latents at step t; z^layout_t is the image with noise of step t, z^prompt_t what the
network made of the step before. nu is one number chosen by hand: a constant blend, which no network computes.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = []


class Denoiser(nn.Module):
    def __init__(self, channels, width, steps):
        super().__init__()
        self.time = nn.Embedding(steps, width)
        self.inp, self.mid = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.out, self.prompt = nn.Conv2d(width, channels, 3, padding=1), nn.Linear(10, width)

    def forward(self, z, t, prompt):
        h = self.inp(z) + (self.time.weight[t] + self.prompt(prompt))[:, :, None, None]
        return self.out(F.silu(self.mid(F.silu(h))))


class MagicMix(nn.Module):
    """A deterministic sampler of few steps."""

    def __init__(self, channels=4, width=16, steps=5, k_max=4, k_min=2, nu=0.9):
        super().__init__()
        self.unet, self.nu, self.k_max, self.k_min = Denoiser(channels, width, steps), nu, k_max, k_min
        self.register_buffer("alphas", torch.linspace(0.98, 0.1, steps))

    def noised(self, image, noise, t):
        return self.alphas[t].sqrt() * image + (1 - self.alphas[t]).sqrt() * noise

    def forward(self, image, noise, prompt):
        z = self.noised(image, noise, self.k_max)
        for t in range(self.k_max, 0, -1):
            eps = self.unet(z, t, prompt)
            clean = (z - (1 - self.alphas[t]).sqrt() * eps) / self.alphas[t].sqrt()
            z = self.noised(clean, eps, t - 1)
            if t > self.k_min:
                z = self.nu * z + (1 - self.nu) * self.noised(image, noise, t - 1)
        return z


def module():
    return MagicMix()


def inputs(batch, length):  # length: half the side of the latents
    size = (batch, 4, 2 * length, 2 * length)
    return torch.randn(size), torch.randn(size), torch.randn(batch, 10)
