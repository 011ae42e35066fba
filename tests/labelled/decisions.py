"""Hard masks and early exits."""

import torch
from snippets import COND, STEP, TOKENS, D, H, has
from torch import nn
from torch.nn import functional as F


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.score, self.out = nn.Linear(D, H), nn.Linear(D, H), nn.Linear(H, D)
        self.theta, self.token = nn.Parameter(torch.zeros(H)), nn.Linear(D, 1)


@has("hard")
class JumpReLU(Masked):
    def forward(self, x):
        z = self.fc(x)
        return self.out(z * (z > self.theta))


@has("hard")
class PlugInGate(Masked):
    """Learned numbers against one half."""

    def forward(self, x):
        return self.fc(x) * (self.theta >= 0.5).float()


@has("hard")
class StraightThrough(Masked):
    def forward(self, x):
        soft = torch.sigmoid(self.score(x))
        hard = (soft > 0.5).float()
        return self.fc(x) * ((hard - soft).detach() + soft)


@has("hard")
class Rounded(Masked):
    def forward(self, x):
        p = torch.sigmoid(self.score(x))
        return self.fc(x) * (torch.round(p) - p.detach() + p)


@has("hard")
class Heaviside(Masked):
    def forward(self, x):
        return self.fc(x) * torch.heaviside(self.score(x), torch.tensor(0.0))


@has("hard")
class SignGate(Masked):
    """The straight-through sign of learned scores, between zero and one."""

    def forward(self, x):
        return self.fc(x) * (0.5 * (torch.sign(self.score(x)) + 1))


@has("hard")
class TopKMask(Masked):
    """A sparse autoencoder that keeps the k largest."""

    def forward(self, x):
        z = F.relu(self.fc(x))
        mask = torch.zeros_like(z).scatter_(-1, z.topk(3, dim=-1).indices, 1.0)
        return self.out(z * mask)


@has("hard")
class TopKScatter(Masked):
    def forward(self, x):
        values, indices = torch.topk(self.fc(x), 3, dim=-1)
        return self.out(torch.zeros_like(self.fc(x)).scatter(-1, indices, F.relu(values)))


@has("hard")
class KthThreshold(Masked):
    """Winners by the k-th largest."""

    def forward(self, x):
        s = self.score(x)
        bound = s.topk(3, dim=-1).values[..., -1:]
        return self.fc(x) * (s >= bound).to(x.dtype)


@has("hard")
class TokenDrop(Masked):
    def forward(self, x):
        keep = torch.sigmoid(self.token(x)) > 0.5
        return torch.where(keep, self.fc(x), torch.zeros(()))


@has("hard")
class MaskedFill(Masked):
    def forward(self, x):
        return self.fc(x).masked_fill(self.score(x) < 0.1, 0.0)


@has("hard")
class TokenTopK(Masked):
    """The tokens with the highest scores pass, weighed by their scores."""

    def forward(self, x):
        score = torch.sigmoid(self.token(x))
        values, places = score.topk(2, dim=1)
        return x + self.out(F.relu(self.fc(x))) * torch.zeros_like(score).scatter_(1, places, values)


@has("hard")
class ChosenTokens(Masked):
    """The second of two scores is the larger one."""

    def __init__(self):
        super().__init__()
        self.two = nn.Linear(D, 2)

    def forward(self, x):
        p = F.softmax(self.two(x), dim=-1)
        on = torch.argmax(p, dim=-1, keepdim=True) == 1
        return x + self.out(F.relu(self.fc(x))) * on.float() * p[..., 1:2]


@has("hard", given=(TOKENS, COND > 0))
class GivenBranch(Masked):
    """Of two branches one is taken only where the caller says so."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(D, H), nn.Linear(D, H)

    def forward(self, x, wanted):
        h = self.first(x)
        wanted = wanted[:, :1].unsqueeze(-1).float()
        return self.out(F.gelu(self.fc(h[..., :D])) + wanted * torch.tanh(self.second(h[..., :D])))


@has("exit", given=(STEP,))
class ConfidentExit(nn.Module):
    def __init__(self):
        super().__init__()
        self.block1, self.head1 = nn.Linear(D, D), nn.Linear(D, 5)
        self.block2, self.head2 = nn.Linear(D, D), nn.Linear(D, 5)

    def forward(self, x):
        h = F.relu(self.block1(x))
        early = self.head1(h)
        late = self.head2(F.relu(self.block2(h)))
        conf, _ = F.softmax(early, dim=-1).max(dim=-1)
        return torch.where((conf > 0.9).unsqueeze(-1), early, late)


@has("exit", given=(STEP,))
class EntropyExit(ConfidentExit):
    def forward(self, x):
        h = F.relu(self.block1(x))
        early = self.head1(h)
        late = self.head2(F.relu(self.block2(h)))
        p = early.softmax(-1)
        entropy = -(p * torch.log(p + 1e-9)).sum(-1, keepdim=True)
        done = (entropy < 0.5).float()
        return done * early + (1 - done) * late


@has("exit", given=(STEP,))
class ScoredExit(ConfidentExit):
    """A learned score says when to stop."""

    def __init__(self):
        super().__init__()
        self.halt = nn.Linear(D, 1)

    def forward(self, x):
        h = F.relu(self.block1(x))
        stop = torch.sigmoid(self.halt(h)) >= 0.5
        return torch.where(stop, self.head1(h), self.head2(F.relu(self.block2(h))))


@has("exit", "exit", given=(STEP,))
class ThreeExits(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(D, D) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(D, 5) for _ in range(3))

    def forward(self, x):
        logits = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = torch.relu(block(x))
            logits.append(head(x))
        out = logits[-1]
        for early in reversed(logits[:-1]):
            sure = early.softmax(dim=-1).amax(dim=-1, keepdim=True) > 0.8
            out = torch.where(sure, early, out)
        return out


@has("exit")
class SkipBlock(nn.Module):
    """A block that a token passes by when its score is low."""

    def __init__(self):
        super().__init__()
        self.router, self.block = nn.Linear(D, 1), nn.Linear(D, D)

    def forward(self, x):
        return torch.where(self.router(x) > 0, x + F.gelu(self.block(x)), x)


@has("exit")
class TokenWithMemory(nn.Module):
    """One decision per token: whether its value, and what is remembered beside it, are computed anew."""

    def __init__(self):
        super().__init__()
        self.score, self.block, self.memory = nn.Linear(D, 1), nn.Linear(D, D), nn.Linear(D, H)

    def forward(self, x):
        skip = self.score(x).squeeze(-1) < 0
        kept = F.pad(x, (0, H - D))
        value = torch.where(skip.unsqueeze(-1), x, F.gelu(self.block(x)))
        memory = torch.where(skip[..., None].expand_as(kept), kept, self.memory(x))
        return value, memory


@has("exit", "exit", given=(STEP,))
class HaltingChances(nn.Module):
    """The chance to stop at each step, if no step before has stopped."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(D, D) for _ in range(3))
        self.halts = nn.ModuleList(nn.Linear(D, 1) for _ in range(2))

    def forward(self, x):
        states, going, out = [], 1.0, None
        for block in self.blocks:
            states.append(torch.tanh(block(states[-1] if states else x)))
        chances = []
        for halt, h in zip(self.halts, states, strict=False):
            p = torch.sigmoid(halt(h))
            chances.append(going * p)
            going = going * (1 - p)
        out = states[-1]
        for chance, h in zip(reversed(chances), reversed(states[:-1]), strict=True):
            out = torch.where(chance > 0.5, h, out)
        return out, going


@has("hard")
class Supermask(Masked):
    """Edge popup: a weight is kept where its learned score is among the largest."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Parameter(torch.linspace(-1, 1, H * D).reshape(H, D))

    def forward(self, x):
        bound = self.scores.abs().flatten().sort().values[H * D // 2]
        return F.linear(x, self.fc.weight * (self.scores.abs() > bound).float(), self.fc.bias)


@has("hard", "hard")
class SignElection(Masked):
    """Deltas of three models: the small ones go, and those against the sign of the sum."""

    def __init__(self):
        super().__init__()
        self.deltas = nn.Parameter(torch.linspace(-1, 1, 3 * H * D).sin().reshape(3, H, D))

    def forward(self, x):
        d = self.deltas
        d = d * d.abs().ge(d.abs().median())
        total = d.sum(0, keepdim=True)
        d = torch.where(total >= 0, d >= 0, d < 0) * d
        return F.linear(x, self.fc.weight + d.mean(0), self.fc.bias)


@has("hard")
class LessRedundantEachTime(Masked):
    """Tokens dropped by a score that is averaged over the tokens kept before."""

    def forward(self, x):
        alike = torch.cdist(x, x).neg().exp()
        first = (torch.sigmoid(self.token(x)) > 0.5).to(x.dtype)
        score = (alike * first.transpose(1, 2)).sum(-1)
        keep = torch.zeros_like(score).scatter(1, score.topk(3, largest=False).indices, 1.0)
        return self.fc(x) * keep.unsqueeze(-1)
