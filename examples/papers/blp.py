"""Bilinear pooling of two modalities: a low-rank product of a video's and a question's projections.

Winterbottom et al., "Trying Bilinear Pooling in Video-QA", 2020, arXiv:2012.10285, compares these fusions:
MLB, Kim et al., "Hadamard Product for Low-rank Bilinear Pooling", 2017, arXiv:1610.04325, and
MFB, Yu et al., "Multi-modal Factorized Bilinear Pooling with Co-attention Learning for VQA", 2017, arXiv:1708.01471.

    MLB: z = P^T (tanh(U^T x) * tanh(V^T y))
    MFB: z = sumpool_k((U^T x) * (V^T y)),  then sign(z) sqrt(|z|),  z / |z|_2

x: batch, frames, video width;  y: batch, 1, question width;  U, V: to one common width, k times wider for MFB.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("glu", 1), ("cell", 1)]  # the fusion; the LSTM that reads the question
VARIANTS = [{"pooling": "mfb"}]


class MLB(nn.Module):
    def __init__(self, x_dim, y_dim, out_dim, rank=24):
        super().__init__()
        self.U, self.V, self.P = nn.Linear(x_dim, rank), nn.Linear(y_dim, rank), nn.Linear(rank, out_dim)

    def forward(self, x, y):
        return self.P(torch.tanh(self.U(x)) * torch.tanh(self.V(y)))


class MFB(nn.Module):
    def __init__(self, x_dim, y_dim, out_dim, k=3):
        super().__init__()
        self.k, self.dropout = k, nn.Dropout(0.1)
        self.U, self.V = nn.Linear(x_dim, k * out_dim), nn.Linear(y_dim, k * out_dim)

    def forward(self, x, y):
        z = self.dropout(self.U(x) * self.V(y)).unflatten(-1, (-1, self.k)).sum(dim=-1)
        z = torch.sign(z) * torch.sqrt(z.abs() + 1e-12)
        return F.normalize(z, dim=-1)


class VideoQA(nn.Module):
    def __init__(self, pooling, video=20, words=32, width=16, answers=5):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(words, width), nn.LSTM(width, width, batch_first=True)
        self.fuse = {"mlb": MLB, "mfb": MFB}[pooling](video, width, width)
        self.answer = nn.Linear(width, answers)

    def forward(self, frames, question):
        _, (state, _) = self.lstm(self.embed(question))
        return self.answer(self.fuse(frames, state[-1].unsqueeze(1)).amax(dim=1))


def module(pooling="mlb"):
    return VideoQA(pooling)


def inputs(batch, length):  # length: frames; seven words
    return torch.randn(batch, length, 20), torch.randint(32, (batch, 7))
