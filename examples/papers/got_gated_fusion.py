"""Graph-of-Thought's gated fusion: text attends to a thought graph and to an image; one gate lets both in.

Yao, Li and Zhao, "Beyond Chain-of-Thought, Effective Graph-of-Thought Reasoning in Language Models", 2023,
arXiv:2305.16582.

    a_i = Attention(h, image),  a_g = Attention(h, graph)
    lam = sigmoid(W [h; a_i; a_g] + b)
    h'  = (1 - lam) * h + lam * a_i + lam * a_g

h, a_i, a_g, lam: batch, tokens, width. Without an image a_i is zero. The graph is encoded by graph attention (GAT).
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("highway", 1)]


class GAT(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.w, self.source, self.target = (nn.Linear(width, n, bias=False) for n in (width, 1, 1))

    def forward(self, nodes, edges):
        h = self.w(nodes)
        scores = F.leaky_relu(self.source(h) + self.target(h).transpose(1, 2), 0.2).masked_fill(edges == 0, -1e9)
        return F.elu(torch.softmax(scores, dim=-1) @ h)


class Encoder(nn.Module):
    def __init__(self, vocabulary=50, width=24, heads=2, pixels=32):
        super().__init__()
        self.embed, self.lm_head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.text = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        self.graph, self.image, self.gate_dense = GAT(width), nn.Linear(pixels, width), nn.Linear(3 * width, width)
        self.image_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.graph_attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens, nodes, edges, patches=None):
        hidden = self.text(self.embed(tokens))
        graph = self.graph(self.embed(nodes), edges)
        graph_att, _ = self.graph_attention(hidden, graph, graph)
        image_att = torch.zeros_like(hidden)
        if patches is not None:
            image = self.image(patches)
            image_att, _ = self.image_attention(hidden, image, image)
        gate = torch.sigmoid(self.gate_dense(torch.cat([hidden, image_att, graph_att], dim=-1)))
        return self.lm_head((1 - gate) * hidden + gate * image_att + gate * graph_att)


def module():
    return Encoder()


def inputs(batch, length):
    tokens, nodes = torch.randint(50, (batch, length)), torch.randint(50, (batch, 5))
    edges = torch.eye(5) + (torch.rand(batch, 5, 5) > 0.6)
    return tokens, nodes, edges, torch.randn(batch, 9, 32)
