"""What no graph can say, and what should never have been written: refused with the line, never a hang."""

import tempfile
import threading
from pathlib import Path

import torch
from torch import nn

from odd import Block, X, call, odd, rows

VALUE = "Python asks for the value of a tensor in it, which depends on data"
FOLDER = Path(tempfile.mkdtemp())


def written():
    return sorted((p.name, p.read_bytes()) for p in FOLDER.iterdir())


def emptied():
    for file in FOLDER.iterdir():
        file.unlink()


@odd(X, others=[-X, rows(3)], refused=VALUE)
class BranchesOnValue(Block):
    def forward(self, x):
        if x.sum() > 0:  # refused
            return self.mlp(x)
        return -x


@odd(X, others=[-X], refused=VALUE)
class BranchesOnAny(Block):
    def forward(self, x):
        y = self.mlp(x)
        return y if torch.isnan(y).any() else -y  # refused


@odd(X, others=[rows(3)], refused=VALUE)
class AssertsValue(Block):
    def forward(self, x):
        assert (x < 100).all(), "too large"  # refused
        return self.mlp(x)


@odd(X, others=[rows(3)], refused=VALUE)
class TakesItem(Block):
    def forward(self, x):
        return self.mlp(x) * x.max().item()  # refused


@odd(X, others=[rows(3)], refused=VALUE)
class FloatOfTensor(Block):
    def forward(self, x):
        return self.mlp(x) * float(x.max())  # refused


@odd(X, others=[rows(3)], refused="its result depends on the values of a tensor (.tolist)")
class ToList(Block):
    def forward(self, x):
        return self.mlp(x) * sum(x[0].tolist())  # refused


@odd(X, others=[rows(3), -X], refused="its result depends on the values of a tensor (.nonzero)")
class Nonzero(Block):
    def forward(self, x):
        at = (x[:, 0] > 0).nonzero().flatten()  # refused
        return self.mlp(x[at])


@odd(X, others=[-X], refused="a size or a value in it depends on data (aten.nonzero.default)")
class BooleanIndex(Block):
    def forward(self, x):
        return self.mlp(x[x[:, 0] > 0])  # refused


@odd(X, others=[rows(3)], refused="a size or a value in it depends on data (aten._unique2.default)")
class Unique(Block):
    def forward(self, x):
        return self.mlp(x) * torch.unique(x.round()).numel()  # refused


@odd(
    torch.tensor([1, 2, 2]),
    others=[torch.tensor([5, 1])],
    refused="a size or a value in it depends on data (aten.bincount.default)",
)
class Bincount(nn.Module):
    def forward(self, ids):
        return torch.bincount(ids)  # refused


@odd(call(X, torch.tensor(2)), others=[call(X, torch.tensor(3))], refused=VALUE)
class SizeFromTensor(Block):
    def forward(self, x, n):
        return self.mlp(x)[: int(n)] + torch.zeros(8)  # refused


@odd(
    call(X, torch.tensor([1, 3])),
    others=[call(X, torch.tensor([2, 2]))],
    refused="a size or a value in it depends on data (aten.repeat_interleave.Tensor)",
)
class RepeatsByTensor(Block):
    def forward(self, x, counts):
        return self.mlp(x[:2].repeat_interleave(counts, 0))  # refused


@odd(call(X, torch.tensor(3)), others=[call(X, torch.tensor(1))], refused=VALUE)
class LoopsByTensor(Block):
    def forward(self, x, steps):
        for _ in range(steps):  # refused
            x = self.mlp(x)
        return x


@odd(X, others=[rows(3)], refused=VALUE)
class UntilItConverges(Block):
    def forward(self, x):
        while x.abs().max() > 1:  # refused
            x = x / 2
        return self.mlp(x)


@odd(X, others=[rows(3)], refused=VALUE)
class TensorInText(Block):
    def forward(self, x):
        return {f"{x.mean():.3f}": self.mlp(x)}  # refused


@odd(X, others=[rows(3)], refused=VALUE)
class TensorAsKey(Block):
    """A tensor of one number chooses the layer."""

    def forward(self, x):
        return [self.mlp, torch.sin][x.argmax() % 2](x)  # refused


@odd(X, others=[rows(3)])
class TensorComparedToNone(Block):
    def forward(self, x):
        return self.mlp(x) if x is not None and x not in (None,) else x


@odd(X, others=[rows(3), X], outside=written, fresh=emptied, refused="it opens a file")
class WritesFile(Block):
    def forward(self, x):
        with open(FOLDER / "log", "a") as file:  # refused
            file.write("x")
        return self.mlp(x)


@odd(X, others=[rows(3)], outside=written, fresh=emptied, refused="it opens a file")
class SavesTensor(Block):
    def forward(self, x):
        torch.save(x.shape, FOLDER / "shape")  # refused
        return self.mlp(x)


class Half(Block):
    def forward(self, x):
        return self.mlp(x)


@odd(X, others=[rows(3)], train=None)
def child_of_itself():
    """torch's own state_dict() and train() never end on it; named_modules() does."""
    model = Half()
    model.other = model
    return model


@odd(X, others=[rows(3)], train=None)
def two_children_of_each_other():
    a, b = Half(), Half()
    a.other, b.other = b, a
    return a


class Calls(Block):
    def __init__(self):
        super().__init__()
        self.back = [self]

    def forward(self, x, depth=3):
        return self.mlp(x) if depth == 0 else self.back[0](x, depth - 1) * 2


@odd(X, others=[rows(3), call(X, 0)])
class CallsItselfAsModule(Calls):
    pass


@odd(call("some words"), others=[call("other"), call("")])
class WordsIn(nn.Module):
    def forward(self, text):
        return len(text), text.upper()


@odd(call(3), others=[call(4), call(2.5), call(None)])
class NumbersInAndOut(nn.Module):
    def forward(self, n):
        return None if n is None else n * 2


@odd(call(), others=[call()])
class NothingIn(Block):
    def forward(self):
        return self.mlp(self.up.bias[:8])


@odd(X, others=[rows(3)])
class NothingOut(Block):
    def forward(self, x):
        self.mlp(x)


@odd(call("some words", X), others=[call("a", rows(3))])
class WordsToTensor(Block):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(128, 8)

    def forward(self, text, x):
        ids = torch.tensor([ord(c) % 128 for c in text], dtype=torch.long)
        return self.mlp(x) + self.table(ids).mean(0)


@odd(call(object()), others=[call(object())])
class ObjectThrough(nn.Module):
    def forward(self, thing):
        return thing is not None


class Uncopyable(Block):
    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")

    def forward(self, x):
        return self.mlp(x)


@odd(X, others=[rows(3)])
def no_deepcopy():
    return nn.Sequential(Uncopyable(), nn.ReLU())


@odd(X, others=[rows(3)], refused="its forward never ends for the tracer")
class EndlessWhileTraced(Block):
    """A loop that a tensor leaves at once and a stand-in never."""

    def forward(self, x):
        while type(x) is not torch.Tensor:
            x = x * 1
        return self.mlp(x)


@odd(X, others=[rows(3)], refused="its forward never ends for the tracer")
class SpinsWhileTraced(Block):
    def forward(self, x):
        while type(x) is not torch.Tensor:
            pass
        return self.mlp(x)


@odd(X, others=[rows(3)], refused="it starts a thread")
class Threads(Block):
    def forward(self, x):
        out = []
        thread = threading.Thread(target=lambda: out.append(self.mlp(x)))
        thread.start()  # refused
        thread.join()
        return out[0]
