"""Component fusion: a speech decoder takes up a language model through a gate.

Jia, Wang, Zhang, Cheng and Xiao, "Large-scale Transfer Learning for Low-resource Spoken Language Understanding", 2020,
arXiv:2008.05671; the gate is that of Sriram et al., "Cold Fusion", 2017, arXiv:1708.06426, which the abstract of the
former does not spell out.

    l = W_l BERT,   g = sigmoid(W_g [s; l] + b),   h = [s; g * l],   logits = W_o relu(W_h h)

s: batch, labels, width, the decoder's states;  BERT: batch, labels, its width, frozen;  g: a number for each unit.
"""

import torch
from torch import nn

GATES = [("product", 1)]


class ComponentFusion(nn.Module):
    def __init__(self, width, bert_width, labels):
        super().__init__()
        self.project = nn.Linear(bert_width, width)
        self.gate = nn.Linear(2 * width, width)
        self.hidden, self.out = nn.Linear(2 * width, width), nn.Linear(width, labels)

    def forward(self, s, bert):
        l = self.project(bert)  # noqa: E741
        g = torch.sigmoid(self.gate(torch.cat((s, l), dim=-1)))
        h = torch.cat((s, g * l), dim=-1)
        return self.out(torch.relu(self.hidden(h)))


class Understanding(nn.Module):
    """Speech encoder, label decoder, and the fusion on top of it."""

    def __init__(self, width=24, bert_width=32, labels=12):
        super().__init__()
        self.frames, self.labels = nn.Linear(20, width), nn.Embedding(labels, width)
        self.encoder = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.fusion = ComponentFusion(width, bert_width, labels)

    def forward(self, speech, labels, bert):
        memory = self.encoder(self.frames(speech))
        causal = torch.ones(labels.shape[1], labels.shape[1], dtype=torch.bool, device=speech.device).triu(1)
        s = self.decoder(self.labels(labels), memory, tgt_mask=causal)
        return self.fusion(s, bert)


def module():
    return Understanding()


def inputs(batch, length):  # length: labels, with two frames of speech each
    return torch.randn(batch, 2 * length, 20), torch.randint(0, 12, (batch, length)), torch.randn(batch, length, 32)
