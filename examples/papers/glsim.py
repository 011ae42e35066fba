"""GLSim: the patches most similar to the whole image say where to look again.

Rios, Hu and Lai, "Global-Local Similarity for Efficient Fine-Grained Image Recognition with Vision Transformers", 2024,
arXiv:2407.12891.

    s_p = cos(z_cls, z_p),   P = the k patches of largest s_p
    crop = the box around P, resized to the image;   logits = head(aggregator([z_cls(image); z_cls(crop)]))

image: batch, 3, side, side;  z: the encoder's tokens. The choice moves a window and has no gradient; it scales nothing.
The released code cuts each image in a Python loop; sampled on a grid here, in one piece.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = []


class GLSim(nn.Module):
    def __init__(self, width, patch, top, classes):
        super().__init__()
        self.patch, self.top, self.embed = patch, top, nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        layer = {"dim_feedforward": 2 * width, "dropout": 0.0, "batch_first": True, "norm_first": True}
        self.encoder = nn.TransformerEncoderLayer(width, 4, **layer)
        self.aggregator = nn.TransformerEncoderLayer(width, 4, **layer)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def encode(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm(self.encoder(x))

    @torch.no_grad()
    def crops(self, z, images):
        side = images.shape[-1] // self.patch
        index = F.cosine_similarity(z[:, :1], z[:, 1:], dim=-1).topk(self.top, dim=-1).indices
        rows, columns = (index // side).to(images.dtype), (index % side).to(images.dtype)
        top, left = rows.amin(1) / side, columns.amin(1) / side
        height, width = (rows.amax(1) + 1) / side - top, (columns.amax(1) + 1) / side - left
        zero = torch.zeros_like(top)
        across = torch.stack([width, zero, 2 * left + width - 1], dim=-1)
        down = torch.stack([zero, height, 2 * top + height - 1], dim=-1)
        grid = F.affine_grid(torch.stack([across, down], dim=1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    def forward(self, images):
        z = self.encode(images)
        local = self.encode(self.crops(z, images))
        return self.head(self.aggregator(torch.stack([z[:, 0], local[:, 0]], dim=1))[:, 0])


def module():
    return GLSim(24, patch=4, top=4, classes=5)


def inputs(batch, length):  # length: an eighth of the side of a square image
    return (torch.randn(batch, 3, 8 * length, 8 * length),)
