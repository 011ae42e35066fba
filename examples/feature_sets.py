"""Which ids matter? Gates on the rows of an embedding, annealed until each is open or shut, on generated clicks.

40 fields of 50 ids; a quarter of the ids say something, by itself and with others; a factorisation machine learns it.

plain     the same model without gates; its ids are ranked by the norm of their rows
L1        the same with an L1 penalty on the embedding; ranked likewise
select    gates and their penalty, annealed; compact takes the shut rows away, and training goes on with what is left

AUC on held-out clicks: of all rows (for select: of the hard gates, before training goes on), and of the rows that are kept,
where plain and L1 keep as many as select does, 31 % of them, by their norms. Of the ids that say
something, the share among those kept.
Mean of three seeds:

    plain   AUC 0.6661, of the rows kept 0.6808   ids found 57%
    L1      AUC 0.7523, of the rows kept 0.7561   ids found 71%
    select  AUC 0.7297, of the rows kept 0.7424   ids found 71%

The strengths of both penalties were chosen on the first seed. Here a well chosen L1 finds as many ids, and its model is better.

python examples/feature_sets.py [seeds]
"""

from __future__ import annotations

import math
import statistics
import sys

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

import gatec

FIELDS, IDS, WIDTH, TRAIN, TEST = 40, 50, 8, 60_000, 20_000
STEPS, BATCH, RATE = 600, 512, 0.01
L1, PENALTY = 3e-4, 0.08  # the best AUC of five strengths and of four, on seed 0


class FactorizationMachine(nn.Module):
    """Second order in the embeddings of the ids, and first order in a projection of them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(FIELDS * IDS, WIDTH), nn.Linear(WIDTH, 1)
        nn.init.normal_(self.table.weight, std=0.05)

    def forward(self, ids: Tensor) -> Tensor:
        e = self.table(ids)
        total = e.sum(1)
        pairs = 0.5 * (total**2 - (e**2).sum(1)).sum(-1)
        return self.out(total).squeeze(-1) + pairs


def clicks(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, clicks, and which ids say something."""
    draw = torch.Generator().manual_seed(seed)
    says = torch.rand(FIELDS * IDS, generator=draw) < 0.25
    first = torch.randn(FIELDS * IDS, generator=draw) * says * 0.5
    second = torch.randn(FIELDS * IDS, 3, generator=draw) * says[:, None] * 0.3
    ids = torch.randint(IDS, (TRAIN + TEST, FIELDS), generator=draw) + torch.arange(FIELDS) * IDS
    total, squares = second[ids].sum(1), (second[ids] ** 2).sum(1)
    logit = first[ids].sum(1) + 0.5 * (total**2 - squares).sum(-1)
    return ids, torch.bernoulli(torch.sigmoid(logit), generator=draw), says


def train(
    model: nn.Module, ids: Tensor, y: Tensor, steps: int, *, seed: int, l1: float = 0.0, select: float = 0.0
) -> None:
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    model.train()
    for step in range(steps):
        if select:
            gatec.anneal(model, step / steps)
        rows = torch.randint(TRAIN, (BATCH,), generator=draw)
        loss = F.binary_cross_entropy_with_logits(model(ids[rows]), y[rows])
        loss = loss + (gatec.losses(model, select=select) if select else 0) + l1 * model.table.weight.abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def auc(model: nn.Module, ids: Tensor, y: Tensor) -> float:
    return float(roc_auc_score(y[TRAIN:], model(ids[TRAIN:])))


def recall(kept: Tensor, says: Tensor) -> float:
    return float((kept & says).sum() / says.sum())


def run(seed: int) -> dict[str, tuple[float, float, float]]:
    """(AUC, AUC of the rows that are kept, recall of ids that say something) of each way."""
    ids, y, says = clicks(seed)
    models = {}
    for name, l1 in (("plain", 0.0), ("L1", L1)):
        torch.manual_seed(seed)
        models[name] = FactorizationMachine()
        train(models[name], ids, y, STEPS + STEPS // 3, seed=seed, l1=l1)
    torch.manual_seed(seed)
    gated = gatec.convert(FactorizationMachine(), "select", inputs=ids[:4], only="table")
    train(gated, ids, y, STEPS, seed=seed, select=PENALTY)
    gatec.anneal(gated, math.inf)
    small, gated_auc = gatec.compact(gated, inputs=ids[:4]), auc(gated, ids, y)
    train(small, ids, y, STEPS // 3, seed=seed + 100)
    kept = small.table.places < small.table.num_embeddings - 1
    found = {"select": (gated_auc, auc(small, ids, y), recall(kept, says))}
    for name, model in models.items():
        norms = model.table.weight.detach().norm(dim=1)
        chosen = norms >= norms.topk(int(kept.sum())).values[-1]
        whole = auc(model, ids, y)
        model.table.weight.data.mul_(chosen[:, None])
        found[name] = whole, auc(model, ids, y), recall(chosen, says)
    return found


if __name__ == "__main__":
    results = [run(seed) for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)]
    for name in ("plain", "L1", "select"):
        means = [statistics.mean(values) for values in zip(*(r[name] for r in results), strict=True)]
        sys.stdout.write(f"{name:<7} AUC {means[0]:.4f}, of the rows kept {means[1]:.4f}   ids found {means[2]:.0%}\n")
