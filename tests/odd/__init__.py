"""A collection of odd modules: what real people write in a forward, one small class or builder each.

`@odd(first call, others=[further calls])` above a class or a builder says how it is called. Every file of this folder
is listed, never named; tests/test_odd.py holds the laws. A case that cannot be captured says so in `refused`, in the
words that a user reads; the comment `# refused` stands on the line of the forward that these words must name.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OPTIONAL = {"peft", "torchao"}
FILES = sorted(m.name for m in pkgutil.iter_modules(__path__))


@dataclass(frozen=True)
class Step:
    """One call of a case; `change` is done to the model before it, `context` is entered around it."""

    args: Any
    kwargs: dict[str, Any]
    change: Callable[[nn.Module], Any] = lambda model: None
    context: Callable[[], Any] = nullcontext

    def form(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of its own for every call: a forward may write into them."""
        if callable(self.args):  # what cannot be copied is made anew
            return self.args(), {}
        return copy.deepcopy(self.args), copy.deepcopy(self.kwargs)


def call(*args: Any, **kwargs: Any) -> Step:
    return Step(args, kwargs)


def made(args: Callable[[], tuple[Any, ...]]) -> Step:
    return Step(args, {})


def after(change: Callable[[Any], Any], call: Any) -> Step:
    return replace(step(call), change=change)


def under(context: Callable[[], Any], call: Any) -> Step:
    return replace(step(call), context=context)


def step(value: Any) -> Step:
    return value if isinstance(value, Step) else Step((value,), {})


@dataclass(frozen=True)
class Case:
    """A module and its calls. `refused` are the words of the refusal: of the model, or by module path."""

    name: str
    build: Callable[[], nn.Module]
    first: Step
    others: tuple[Step, ...]
    refused: dict[str, str]
    train: bool | None
    outside: Callable[[], Any]
    fresh: Callable[[], Any]
    falls: int

    def model(self) -> nn.Module:
        self.fresh()
        torch.manual_seed(0)
        model = self.build()
        return model if self.train is None else model.train(self.train)

    def line(self) -> str:
        """file:line of the user's code that a refusal must name, "" if no line of the forward is to blame."""
        source, start = inspect.getsourcelines(self.build)
        numbers = [start + i for i, line in enumerate(source) if line.rstrip().endswith("# refused")]
        return f"{inspect.getsourcefile(self.build)}:{numbers[0]}" if numbers else ""


def nothing() -> None:
    pass


def odd(first: Any, *, others: Any = (), refused: Any = "", train: bool | None = False,
        outside: Callable[[], Any] = nothing, fresh: Callable[[], Any] = nothing, falls: int = 0) -> Any:  # fmt: skip
    """Make a class, or a function that builds a module, a case.

    train    the mode of the model; None leaves it alone
    outside  what the forward changes beyond the model, as a value that can be compared; `fresh` puts it back
    falls    how many of the calls are refused, each with the result of the module's own forward, when `first` is not
    """
    words = {"": refused} if isinstance(refused, str) and refused else refused or {}

    def mark(build: Any) -> Any:
        build.odd = Case(
            build.__name__, build, step(first), tuple(map(step, others)), words, train, outside, fresh, falls
        )
        return build

    return mark


def read(file: str) -> types.ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still there
        return importlib.import_module(f"{__name__}.{file}")


def missing() -> dict[str, str]:
    """Files of this folder that need a package which is not installed, and its name."""
    found = {}
    for file in FILES:
        try:
            read(file)
        except ModuleNotFoundError as e:
            if e.name not in OPTIONAL:
                raise
            found[file] = e.name
    return found


def cases() -> Iterator[Case]:
    left = missing()
    for file in (f for f in FILES if f not in left):
        module = read(file)
        for value in list(vars(module).values()):
            case = vars(value).get("odd") if inspect.isclass(value) or inspect.isfunction(value) else None
            if case is not None and value.__module__ == module.__name__:
                yield replace(case, name=f"{file}-{case.name}")


def rows(*shape: int, width: int = 8) -> Tensor:
    return torch.linspace(-2, 2, width * torch.Size(shape).numel()).reshape(*shape, width)


def ids(*shape: int) -> Tensor:
    return (torch.arange(torch.Size(shape).numel()) * 7 % 16).reshape(shape)


class Block(nn.Module):
    """An MLP with room for whatever a forward does around it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


X = rows(4)
