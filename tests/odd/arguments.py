"""What goes in and out of a forward: stars, keywords, defaults, dataclasses, tuples with names, dictionaries."""

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPast
from transformers.utils import ModelOutput

from odd import Block, X, call, made, odd, rows


@odd(call(X, X), others=[call(X), call(X, X, X, b=X, a=X + 1), call(X, a=X, b=X + 1)])
class Stars(Block):
    def forward(self, x, *others, **more):
        y = self.mlp(x)
        for other in others:
            y = y * other
        for i, (name, value) in enumerate(more.items()):
            y = y + value * (i + len(name))
        return y


@odd(call(X, scale=2), others=[call(X), call(X, scale=2.5), call(X, shift=X), call(X, 3)])
class KeywordOnly(Block):
    def forward(self, x, *, scale=1, shift=None):
        return self.mlp(x) * scale + (0 if shift is None else shift)


@odd(call(X, 2), others=[call(X), call(x=X, scale=3)])
class PositionalOnly(Block):
    def forward(self, x, scale=1, /):
        return self.mlp(x) * scale


@odd(call(input_ids=X), others=[call(x=X), call(X), call(input_ids=X, x=X), call()])
class EitherOr(Block):
    def forward(self, input_ids=None, x=None):
        if (input_ids is None) == (x is None):
            raise ValueError("exactly one of the two")
        return self.mlp(input_ids if x is None else x)


@odd(X, others=[call(X, {"a": 5}), call(X, {})])
class MutableDefault(Block):
    def forward(self, x, options={"a": 2}, *, at=(0, 1)):  # noqa: B006
        return self.mlp(x) * options.get("a", 1) + at[1]


@odd(X, others=[rows(3)])
class PassesOn(nn.Module):
    """Hands whatever it gets to its child."""

    def __init__(self):
        super().__init__()
        self.inner = Stars()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **{**kwargs, "extra": args[0]})


@dataclass
class Batch:
    x: Tensor
    scale: float = 1.0
    more: list = field(default_factory=list)


@odd(call(Batch(X)), others=[call(Batch(rows(3))), call(Batch(X, 3.0)), call(Batch(X, more=[X, X]))])
class DataclassIn(Block):
    def forward(self, batch):
        y = self.mlp(batch.x) * batch.scale
        for other in batch.more:
            y = y + other
        return y


@dataclass
class Result:
    y: Tensor
    hidden: Tensor | None = None
    size: int = 0


@odd(X, others=[rows(3), rows(2, 2)])
class DataclassOut(Block):
    def forward(self, x):
        y = self.mlp(x)
        return Result(y, hidden=y * 2 if x.dim() == 2 else None, size=x.shape[0])


@odd(X, others=[rows(3)])
class DataclassBetween(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = DataclassOut(), DataclassIn()

    def forward(self, x):
        found = self.inner(x)
        return self.outer(Batch(found.y, more=[found.hidden])) * found.size


class Pair(NamedTuple):
    y: Tensor
    more: dict


Old = namedtuple("Old", "a b")


@odd(call(Old(X, X)), others=[call(Old(rows(3), rows(3)))])
class NamedTuples(Block):
    def forward(self, pair):
        a, b = pair
        return Pair(self.mlp(pair.a) + b, {"old": pair._replace(a=a * 2), "first": pair[0]})


@odd(call({"x": X, "deep": {"pair": (X, [X])}}), others=[call({"deep": {"pair": (X, [rows(4)])}, "x": X})])
class NestedDict(Block):
    def forward(self, batch):
        first, (second,) = batch["deep"]["pair"]
        return self.mlp(batch["x"]) + first * second


@odd(X, others=[rows(3)])
class NestedOut(Block):
    def forward(self, x):
        y = self.mlp(x)
        return OrderedDict(
            y=y, deep=[(y, None, 3), {"words": "w", "sizes": y.shape}], n=len(y), kind=y.dtype, dev=y.device
        )


@odd(X, others=[rows(3)])
class DefaultDictOut(Block):
    def forward(self, x):
        found = defaultdict(list)
        for i in range(3):
            found[i % 2].append(self.mlp(x) * i)
        return found


@odd(X, others=[rows(3)])
class DictWithOddKeys(Block):
    def forward(self, x):
        return {0: self.mlp(x), (1, 2): x, torch.float32: x * 2, None: x * 3}


@dataclass
class MyOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden: tuple | None = None


@odd(X, others=[call(X, X), call(X, return_dict=False), call(rows(3))])
class ModelOutputs(Block):
    def forward(self, x, labels=None, return_dict=True):
        y = self.mlp(x)
        loss = None if labels is None else (y - labels).square().mean()
        if not return_dict:
            return tuple(v for v in (loss, y) if v is not None)
        return MyOutput(loss=loss, logits=y, hidden=(x, y))


@odd(X, others=[rows(3)], refused="it decides something after it has written to its surroundings")
class ModelOutputBetween(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = ModelOutputs()

    def forward(self, x):
        out = self.inner(x)
        out.logits = out["logits"] + out[0]
        first = out.to_tuple()[-1]
        return BaseModelOutputWithPast(last_hidden_state=out.logits, hidden_states=(*out.hidden, first))


@odd(call(BaseModelOutput(last_hidden_state=X)), others=[call(BaseModelOutput(rows(3), (X, X)))])
class ModelOutputIn(Block):
    def forward(self, encoded):
        y = self.mlp(encoded.last_hidden_state) + encoded[0]
        if encoded.hidden_states is not None:
            y = y.sum() + encoded.hidden_states[-1]
        return y if "last_hidden_state" in encoded else -y


class Notes:
    """An object that no tracer looks into."""

    def __init__(self):
        self.step, self.seen = 1, None


@odd(
    call(X, Notes()),
    others=[call(rows(3), Notes())],
    refused="it decides something after it has written to its surroundings",
)
class NotedAndAsked(Block):
    def forward(self, x, notes):
        notes.seen = x
        assert notes.step == 1
        return self.mlp(x)


@odd(call(X, Notes()), others=[call(rows(3), Notes())])
class Asked(Block):
    def forward(self, x, notes):
        assert notes.step == 1
        return self.mlp(x)


@odd(call([X, X, X]), others=[call([X]), call([rows(3), rows(2)]), call([])])
class ListIn(Block):
    def forward(self, xs):
        return [self.mlp(x) for x in xs]


@odd(X, others=[rows(3)])
class ManyOut(Block):
    def forward(self, x):
        y = self.mlp(x)
        return y, y, x, None, True, 2.5, "words", x.shape, x.shape[0], [], (), {}


@odd(X, others=[rows(3)])
class InputOut(nn.Module):
    """The very tensor it was given, and a view of it."""

    def forward(self, x):
        return x, x[0], x.view(-1)


@odd(X, others=[rows(3), call(X, False)])
class OnlySizesOut(nn.Module):
    def forward(self, x, size=True):
        return x.shape if size else (x.size(0) * 2, x.numel(), x.dim())


@odd(X, others=[call(X, X, X)])
class OneTensorTwice(Block):
    def forward(self, a, b=None, c=None):
        return self.mlp(a) if b is None else self.mlp(a) * b + (1 if c is b else 2)


@odd(made(lambda: (lambda x: (x, x))(rows(4))), others=[made(lambda: (rows(4), rows(4)))])
class SameObject(Block):
    """Self-attention code asks whether query and key are one tensor."""

    def forward(self, q, k):
        return self.mlp(q) if q is k else self.mlp(q) - k


@odd(call(X, X.shape), others=[call(X, torch.Size([2, 16])), call(X, (8, 4))])
class SizeIn(Block):
    def forward(self, x, shape):
        return self.mlp(x).reshape(shape)


@odd(call(X, torch.float64), others=[call(X, torch.float32), call(X, dtype=torch.bfloat16)])
class DtypeIn(Block):
    def forward(self, x, dtype):
        return self.mlp(x).to(dtype)


@odd(call(X, torch.tensor(3)), others=[call(X, torch.tensor(2)), call(rows(3), torch.tensor(5))])
class ScalarTensorIn(Block):
    def forward(self, x, n):
        return self.mlp(x) * n + torch.arange(len(x))[:, None] % n


@odd(call(X, torch.sin), others=[call(X, torch.cos), call(X, abs)])
class FunctionIn(Block):
    def forward(self, x, function):
        return function(self.mlp(x))


@odd(call(X, slice(0, 2)), others=[call(X, slice(1, None)), call(X, ...), call(X, 0), call(X, torch.tensor([0, 1]))])
class IndexIn(Block):
    def forward(self, x, index):
        return self.mlp(x)[index]


@odd(call(X, torch.tensor(1)), others=[call(X, torch.tensor(0)), call(rows(3), torch.tensor(-1))])
class PlaceIn(Block):
    """A number in a tensor that selects one of many."""

    def __init__(self):
        super().__init__()
        self.tasks = nn.Parameter(torch.randn(2, 8, 3))

    def forward(self, x, task):
        return torch.sigmoid(self.mlp(x)) * self.tasks[task, :, task] + self.tasks[task][:, 0]
