"""ReT's recurrent cell: learned queries go through the layers of a text and an image backbone, as through time.

Caffagni, Sarto, Cornia, Baraldi and Cucchiara, "Recurrence-Enhanced Vision-and-Language Transformers for Robust
Multimodal Document Retrieval", 2025, CVPR, arXiv:2503.01980.

    h_t = CrossAttention(q, text_l),  h_v = CrossAttention(q, image_l)
    i_t = sigmoid(W_it h_t),  i_v = sigmoid(W_iv h_v),  f = sigmoid(W_ft h_t + W_fv h_v + b)
    q'  = f * tanh(q) + i_t * tanh(h_t) + i_v * tanh(h_v)
    q   = q' + MLP(q')

q: batch, queries, width; text_l, image_l: batch, tokens, width of layer l. Of a missing modality i and h are zero.
"""

import torch
from torch import nn

GATES = [("cell", 1)]
VARIANTS = [{"act": None}]


class RecurrentCell(nn.Module):
    def __init__(self, width, heads, act):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.text_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.image_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.w_it, self.w_iv = nn.Linear(width, width), nn.Linear(width, width)
        self.w_ft, self.w_fv = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.act = act or nn.Identity()

    def forward(self, q, text, image):
        query = self.norm(q)
        forget, taken = 0.0, 0.0
        if text is not None:
            h_t = self.text_attn(query, text, text, need_weights=False)[0]
            forget = self.w_ft(h_t)
            taken = torch.sigmoid(self.w_it(h_t)) * self.act(h_t)
        if image is not None:
            h_v = self.image_attn(query, image, image, need_weights=False)[0]
            forget = forget + self.w_fv(h_v)
            taken = taken + torch.sigmoid(self.w_iv(h_v)) * self.act(h_v)
        q = torch.sigmoid(forget) * self.act(q) + taken
        return q + self.mlp(q)


class Retriever(nn.Module):
    """One cell for all layers; the queries' last state is the embedding of a document."""

    def __init__(self, layers, width, queries, act):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.cell = RecurrentCell(width, 2, act)
        self.layers, self.out = layers, nn.Linear(width, 8)

    def forward(self, text=None, image=None):  # batch, layers, tokens, width
        given = text if text is not None else image
        if given is None:
            raise ValueError("a text, an image, or both")
        q = self.queries.expand(given.shape[0], -1, -1)
        for layer in range(self.layers):
            q = self.cell(
                q, text[:, layer] if text is not None else None, image[:, layer] if image is not None else None
            )
        return nn.functional.normalize(self.out(q), dim=-1)


def module(act=torch.tanh):
    return Retriever(layers=3, width=16, queries=4, act=act)


def inputs(batch, length):
    return torch.randn(batch, 3, length, 16), torch.randn(batch, 3, 5, 16)
