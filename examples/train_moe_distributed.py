"""A small byte model, made a mixture of experts by all processes together, and trained with the experts dealt out.

    torchrun --nproc-per-node 2 examples/train_moe_distributed.py --steps 20 --out moe

Every process has its own lines of text and a share of the experts; tokens travel to their experts and back. All other
parameters are sharded by fully_shard. The checkpoint can be resumed by any number of processes, or by one.
"""

import argparse
import inspect

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

import gatec

WIDTH, CONTEXT, BATCH = 64, 4, 256


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(F.relu(self.up(self.norm(x))))


class Bytes(nn.Module):
    """The next byte from the last few."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256 * CONTEXT, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, context):
        places = 256 * torch.arange(CONTEXT, device=context.device)
        return self.head(self.blocks(self.embed(context + places).sum(-2)))


def batch(text, generator):
    starts = torch.randint(len(text) - CONTEXT, (BATCH,), generator=generator)
    windows = text[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, -1]


def train(steps: int, out: str | None = None) -> list[float]:
    """The mean loss over the processes after each step."""
    size = dist.get_world_size()
    text = torch.tensor(list(inspect.getsource(nn.modules.transformer).encode()))
    torch.manual_seed(0)  # the same model everywhere
    dense, example = Bytes(), torch.zeros(2, CONTEXT, dtype=torch.long)
    model = gatec.convert(dense, "moe", experts=8, top_k=2, inputs=example, group=dist.group.WORLD)

    mesh = init_device_mesh("cpu", (size,))
    gatec.expert_parallel(model, mesh)
    experts = {p for p in model.parameters() if isinstance(p, DTensor)}
    fully_shard(model, mesh=mesh, ignored_params=experts)

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator, losses = torch.Generator().manual_seed(dist.get_rank()), []
    for _ in range(steps):
        context, following = batch(text, generator)
        loss = F.cross_entropy(model(context), following)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach() / size
        dist.all_reduce(mean)
        losses.append(float(mean))
    if out:
        checkpoint.save({"model": model.state_dict()}, checkpoint_id=out)
    return losses


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--out", help="a folder for the checkpoint")
    given = options.parse_args()
    dist.init_process_group("gloo")
    losses = train(given.steps, given.out)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} processes, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
