"""What a forward reads and writes beyond its module: caches, configs, classes, globals, the environment."""

import dataclasses
import functools
import os
import random
import types

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PretrainedConfig

from odd import Block, X, after, odd, rows

SCALE = 2.0
OPTIONS = {"deep": True}
TABLE = torch.linspace(0, 1, 8)
COUNTS = {"calls": 0}
CALLS = 0
SEEN: list[int] = []


def plain() -> None:
    """Everything of this file that a forward or a step changes, as it was."""
    globals().update(SCALE=2.0, CALLS=0, TABLE=torch.linspace(0, 1, 8), helper=doubled)
    OPTIONS.update(deep=True)
    COUNTS.update(calls=0)
    SEEN.clear()
    CountsOnClass.calls, ClassAttribute.factor, MethodReplaced.middle = 0, 2.0, MethodReplaced.plain
    os.environ.pop("ODD_FLAG", None)
    random.seed(0)
    np.random.seed(0)


@functools.lru_cache(maxsize=8)
def mask_of(n: int) -> torch.Tensor:
    return torch.ones(n, 8).tril()


@odd(
    X,
    others=[rows(3), X, rows(3)],
    fresh=mask_of.cache_clear,
    refused="it uses a tensor that is no parameter, buffer or attribute of the module",
)
class CachedHelper(Block):
    def forward(self, x):
        return self.mlp(x) * mask_of(x.shape[0]) + mask_of(8)[0]


@functools.lru_cache
def root_of(n):
    return n**0.5


@odd(X, others=[rows(3), X], fresh=root_of.cache_clear)
class CachedNumber(Block):
    """The cache keeps what it is given: a number, not a stand-in for one."""

    def forward(self, x):
        return self.mlp(x) * root_of(x.shape[0]) + root_of(9)


class Tables:
    """A helper object that is no module and keeps tables by size."""

    def __init__(self):
        self.kept = {}

    def of(self, n):
        if n not in self.kept:
            self.kept[n] = torch.arange(n).float()[:, None]
        return self.kept[n]


@odd(X, others=[rows(3), X, rows(3)], refused="its forward changes what stands in self.tables.kept")
class HelperWithCache(Block):
    def __init__(self):
        super().__init__()
        self.tables = Tables()

    def forward(self, x):
        return self.mlp(x) + self.tables.of(x.shape[0])


@dataclasses.dataclass
class Config:
    scale: float = 2.0
    act: str = "gelu"
    inner: dict = dataclasses.field(default_factory=lambda: {"bias": 1.0, "list": [1, 2]})


def change(**fields):
    return lambda m: [setattr(m.config, k, v) for k, v in fields.items()]


@odd(
    X,
    others=[
        after(change(scale=3.0), X),
        after(change(act="relu"), X),
        after(lambda m: m.config.inner.update(bias=5.0), X),
        after(lambda m: m.config.inner["list"].append(3), X),
        after(lambda m: setattr(m, "config", Config()), X),
    ],
)
class ConfigChangedLater(Block):
    def __init__(self):
        super().__init__()
        self.config = Config()

    def forward(self, x):
        y = self.down(getattr(F, self.config.act)(self.up(x))) * self.config.scale
        return y + self.config.inner["bias"] + len(self.config.inner["list"])


@odd(X, others=[rows(3), after(change(scale=3.0), X), after(change(new=True), X)])
class HubConfigChangedLater(Block):
    def __init__(self):
        super().__init__()
        self.config = PretrainedConfig(scale=2.0)

    def forward(self, x):
        y = self.mlp(x) * self.config.scale
        return y * 2 if getattr(self.config, "new", False) else y


@odd(X, others=[after(lambda m: setattr(m.options, "scale", 7), X), after(lambda m: setattr(m.options, "extra", 1), X)])
class Namespace(Block):
    def __init__(self):
        super().__init__()
        self.options = types.SimpleNamespace(scale=2)

    def forward(self, x):
        return self.mlp(x) * self.options.scale + getattr(self.options, "extra", 0)


def on_the_class(value):
    return lambda m: setattr(ClassAttribute, "factor", value)


@odd(X, others=[after(on_the_class(5.0), X), after(on_the_class(2.0), X)], fresh=plain)
class ClassAttribute(Block):
    factor = 2.0

    def forward(self, x):
        return self.mlp(x) * self.factor * type(self).factor


def set_global(**values):
    return lambda m: globals().update(values)


@odd(X, others=[after(set_global(SCALE=3.0), X), after(set_global(SCALE=2.0), X)], fresh=plain)
class Global(Block):
    def forward(self, x):
        return self.mlp(x) * SCALE


@odd(
    X,
    others=[after(lambda m: OPTIONS.update(deep=False), X), after(lambda m: OPTIONS.update(deep=True), X)],
    fresh=plain,
)
class GlobalDict(Block):
    def forward(self, x):
        return self.mlp(x) if OPTIONS["deep"] else x


@odd(X, others=[rows(3)], fresh=plain)
class GlobalTensor(Block):
    def forward(self, x):
        return self.mlp(x) * TABLE


@odd(
    X,
    others=[rows(3), after(set_global(TABLE=torch.ones(8)), X), after(set_global(TABLE=torch.linspace(0, 1, 8)), X)],
    fresh=plain,
)
class GlobalTensorReplaced(Block):
    def forward(self, x):
        return self.mlp(x) * TABLE


def doubled(x):
    return x * 2


helper = doubled


@odd(X, others=[after(set_global(helper=lambda x: x * 5), X), after(set_global(helper=doubled), X)], fresh=plain)
class GlobalFunctionReplaced(Block):
    def forward(self, x):
        return helper(self.mlp(x))


def replaced_method(model):
    MethodReplaced.middle = lambda self, x: x * 7


def plain_method(model):
    MethodReplaced.middle = MethodReplaced.plain


@odd(X, others=[after(replaced_method, X), after(plain_method, X)], fresh=plain)
class MethodReplaced(Block):
    """Somebody patches a method of the class after the capture."""

    def plain(self, x):
        return x * 2

    middle = plain

    def forward(self, x):
        return self.middle(self.mlp(x))


@odd(
    X,
    others=[after(lambda m: os.environ.update(ODD_FLAG="1"), X), after(lambda m: os.environ.pop("ODD_FLAG", None), X)],
    fresh=plain,
)
class Environment(Block):
    def forward(self, x):
        return self.mlp(x) * 2 if os.environ.get("ODD_FLAG") == "1" and os.getenv("ODD_FLAG") else self.mlp(x)


@odd(X, others=[rows(3), X], outside=lambda: CALLS, fresh=plain, refused="its forward writes the global CALLS")
class CountsInGlobal(Block):
    def forward(self, x):
        global CALLS
        CALLS += 1  # refused
        return self.mlp(x)


@odd(
    X,
    others=[rows(3), X],
    outside=lambda: dict(COUNTS),
    fresh=plain,
    refused="its forward changes what stands in the global COUNTS",
)
class CountsInDict(Block):
    def forward(self, x):
        COUNTS["calls"] += 1  # refused
        return self.mlp(x)


@odd(
    X,
    others=[rows(3), X],
    outside=lambda: list(SEEN),
    fresh=plain,
    refused="its forward changes what stands in the global SEEN",
)
class AppendsToGlobal(Block):
    def forward(self, x):
        SEEN.append(len(x))  # refused
        return self.mlp(x)


@odd(
    X,
    others=[rows(3), X],
    outside=lambda: CountsOnClass.calls,
    fresh=plain,
    refused="its forward assigns CountsOnClass.calls",
)
class CountsOnClass(Block):
    calls = 0

    def forward(self, x):
        CountsOnClass.calls += 1  # refused
        return self.mlp(x)


def closure():
    calls = [0]

    class CountsInClosure(Block):
        def forward(self, x):
            calls[0] += 1
            self.calls = calls[0]
            return self.mlp(x)

    return CountsInClosure()


@odd(X, others=[rows(3), X], refused="its forward changes what stands in calls of its closure")
def counts_in_closure():
    return closure()


@odd(
    X,
    others=[rows(3)],
    outside=lambda: random.getstate()[1][-1],
    fresh=plain,
    refused="it asks Python for random numbers",
)
class PythonRandom(Block):
    def forward(self, x):
        if random.random() < 2:  # refused
            return self.mlp(x)
        return x


@odd(
    X,
    others=[rows(3)],
    outside=lambda: np.random.get_state()[2],
    fresh=plain,
    refused="it asks numpy for random numbers",
)
class NumpyRandom(Block):
    def forward(self, x):
        return self.mlp(x) * (np.random.rand() < 2)  # refused


@odd(X, others=[rows(3)])
class OwnGenerator(Block):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        return self.mlp(x) + torch.rand(x.shape[0], 8, generator=self.generator)


@odd(X, others=[rows(3)], refused="it seeds the random numbers")
class SeedsTorch(Block):
    def forward(self, x):
        torch.manual_seed(5)  # refused
        return self.mlp(x) + torch.rand(8)


@odd(X, others=[rows(3)], refused="its result depends on the values of a tensor (.numpy)")
class Numpy(Block):
    def forward(self, x):
        values = x.detach().cpu().numpy()  # refused
        return self.mlp(x) + torch.from_numpy(np.sin(values))


@odd(X, others=[rows(3)], refused="its result depends on the values of a tensor (.__array__)")
class NumpyFunction(Block):
    def forward(self, x):
        return self.mlp(x) + torch.as_tensor(np.asarray(x.detach())).mean()  # refused


@odd(X, others=[rows(3)], refused="it hands on an object of type ndarray that it made")
class NumpyOfSizes(Block):
    """numpy that only sees numbers: a table of positions, as vision models build it."""

    def forward(self, x):
        grid = np.stack(np.meshgrid(np.arange(x.shape[0]), np.arange(8), indexing="ij")).sum(0)
        return self.mlp(x) + torch.from_numpy(grid).float() * np.sqrt(x.shape[-1]) + float(np.prod(x.shape))


@odd(X, others=[rows(3)])
class NumpyScalars(Block):
    def __init__(self):
        super().__init__()
        self.scale, self.table = np.float32(0.5), np.linspace(0, 1, 8).astype(np.float32)

    def forward(self, x):
        return self.mlp(x) * self.scale + torch.from_numpy(self.table) + torch.tensor(self.table) * float(self.scale)
