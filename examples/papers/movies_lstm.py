"""An LSTM that describes movies: torch's own cell, as it comes.

Rohrbach, Rohrbach and Schiele, "The Long-Short Story of Movie Description", GCPR 2015, arXiv:1506.01698; the cell is
that of Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, with a forget gate.

    i, f, o = sigmoid(W [x_t; h_{t-1}] + b),   g = tanh(W_g [x_t; h_{t-1}] + b_g)
    c_t = f * c_{t-1} + i * g,   h_t = o * tanh(c_t)

x_t: the embedding of the word before, beside the clip's features. All the gates are inside nn.LSTM, which is to be left
alone.
"""

import torch
from torch import nn

GATES = [("cell", 1)]


class MovieDescription(nn.Module):
    def __init__(self, words=50, clip=30, width=16, hidden=24):
        super().__init__()
        self.embed, self.clip = nn.Embedding(words, width), nn.Linear(clip, width)
        self.lstm = nn.LSTM(2 * width, hidden, batch_first=True)
        self.dropout, self.word = nn.Dropout(0.5), nn.Linear(hidden, words)

    def forward(self, clip, words):
        visual = torch.relu(self.clip(clip)).unsqueeze(1).expand(-1, words.shape[1], -1)
        h, _ = self.lstm(torch.cat([self.embed(words), visual], dim=-1))
        return self.word(self.dropout(h))


def module():
    return MovieDescription()


def inputs(batch, length):
    return torch.randn(batch, 30), torch.randint(0, 50, (batch, length))
