"""Threshold-activated sparse autoencoder on a residual stream: a code passes where it exceeds a learned threshold.

Hu et al., "Towards Atoms of Large Language Models", 2025, arXiv:2509.20784; the activation is JumpReLU, Rajamanoharan
et al., 2024, arXiv:2407.14435.

    z = W_enc x + b_enc
    a = z * 1[z > theta]
    x_hat = W_dec a + b_dec

x, x_hat: batch, tokens, width;  z, a: batch, tokens, atoms;  theta: atoms, positive. The step has no gradient to theta;
a rectangle of width eps around the threshold stands for it. The stream goes on with x_hat plus the error, which is
not trained, so that the model is as it was.
"""

import torch
from torch import nn

GATES = [("hard", 1)]
EPS = 0.05


def rectangle(x):
    return ((x > -0.5) & (x < 0.5)).to(x.dtype)


class JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, theta):
        ctx.save_for_backward(z, theta)
        return z * (z > theta)

    @staticmethod
    def backward(ctx, grad):
        z, theta = ctx.saved_tensors
        to_theta = -(theta / EPS) * rectangle((z - theta) / EPS) * grad
        return grad * (z > theta), to_theta.sum_to_size(theta.shape)


class SparseAutoencoder(nn.Module):
    def __init__(self, width, atoms):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(width, atoms), nn.Linear(atoms, width)
        self.log_theta = nn.Parameter(torch.full((atoms,), -3.0))

    def forward(self, x):
        code = JumpReLU.apply(self.encoder(x), self.log_theta.exp())
        return self.decoder(code), code


class LanguageModel(nn.Module):
    def __init__(self, vocabulary, width, atoms):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.before, self.after = (
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.sae = SparseAutoencoder(width, atoms)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        x = self.before(self.embedding(ids), mask, is_causal=True)
        x_hat, code = self.sae(x)
        spliced = x_hat + (x - x_hat).detach()
        return self.head(self.after(spliced, mask, is_causal=True)), x_hat, code


def module():
    return LanguageModel(40, 16, 64)


def inputs(batch, length):
    return (torch.randint(40, (batch, length)),)
