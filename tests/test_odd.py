"""The laws of capture over the collection of odd modules in tests/odd: what people write, to the bit."""

from __future__ import annotations

import hashlib
import re
import signal
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from odd import FILES, Case, Step, cases, missing
from sampled import some
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from gatec.capture import Nothing, install, unit_of
from gatec.capture.tracer import ENDLESS
from gatec.errors import GatecError, Refused
from gatec.program import Program

SECONDS = 10  # for all calls of one case; the slowest takes two
AFTERWARDS = (
    "its forward changes what stands in",
    "its forward writes the",
    "its forward assigns Counts",
)  # seen at the end
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about what people write
EVERY = pytest.mark.parametrize("case", list(cases()), ids=lambda c: c.name)
EACH_THIRD = pytest.mark.parametrize("case", some(cases()), ids=lambda c: c.name)
HELD = {"_gatec", "_parameters", "_buffers", "_modules", "_is_full_backward_hook"}


@contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """A capture that hangs is a failure of its own, not the end of the suite; it is processor time that counts."""

    def stop(*_: object) -> None:
        pytest.fail(f"still running after {seconds} seconds")

    was = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, was)


# -- what is compared ---------------------------------------------------------------------------------------------------


def seen(value: Any, depth: int = 0) -> Any:
    """A value as something that == compares to the bit: tensors by their bytes, objects by what stands in them."""
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, dict):
        return type(value), {k: seen(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return type(value), [seen(v, depth + 1) for v in value]
    if isinstance(value, torch.Generator):
        return seen(value.get_state())
    if isinstance(value, (fx.Proxy, fx.Node)):
        raise AssertionError(f"a proxy was left behind: {value}")
    if value is None or isinstance(value, (int, str, bytes, torch.dtype, torch.device, slice)):
        return type(value), value
    if isinstance(value, (float, complex)):
        return type(value), repr(value)
    if isinstance(value, (nn.Module, type, types.FunctionType, types.MethodType)) or depth > 4 or machinery(value):
        return type(value).__name__
    return type(value).__name__, {k: seen(v, depth + 1) for k, v in getattr(value, "__dict__", {}).items()}


def machinery(value: Any) -> bool:
    """Handles, contexts and the like: nothing that a forward computes."""
    return type(value).__module__.startswith(("torch.", "weakref", "functools"))


def tensor(value: Tensor) -> Any:
    shape = "jagged" if value.is_nested else tuple(value.shape)
    about = type(value).__name__, shape, value.dtype, value.layout, value.requires_grad, value.device.type
    if isinstance(value, nn.parameter.UninitializedTensorMixin):
        return type(value).__name__
    plain = value.detach()
    if plain.is_nested:
        return *about, tensor(plain.values())
    if plain.is_quantized:
        plain = plain.int_repr()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    if plain.is_meta or type(plain) not in (Tensor, nn.Parameter):
        return about
    flat = plain.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return *about, str(flat[:4].tolist()), hashlib.sha1(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


class Raised:
    """An exception; two are the same if they are of one type."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raised) and type(self.error) is type(other.error)

    def __repr__(self) -> str:
        return f"raised {type(self.error).__name__}: {self.error}"


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a forward can leave behind: parameters, buffers, plain attributes."""
    found = {}
    for path, module in model.named_modules():
        held = {**module._parameters, **module._buffers, **{n: v for n, v in vars(module).items() if n not in HELD}}
        plain = {n: v for n, v in held.items() if "hook" not in n and "torchdynamo" not in n}
        found.update({f"{path}.{name}".lstrip("."): seen(value) for name, value in plain.items()})
    return found


def floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.requires_grad and value.layout is torch.strided:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from floats(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from floats(item)
    elif hasattr(value, "__dataclass_fields__"):
        yield from floats(vars(value))


def answer(model: nn.Module, step: Step, grad: bool, outside: Callable[[], Any]) -> dict[str, Any]:
    """One call: its result or what it raised, its arguments afterwards, gradients, and the state that it left."""
    step.change(model)
    args, kwargs = step.form()
    leaves: dict[int, Tensor] = {}
    if grad:
        model.zero_grad()
        args, kwargs = tree_map(lambda v: differentiable(v, leaves), (args, kwargs))
    torch.manual_seed(1)
    found: dict[str, Any] = {"backward": None}
    try:
        with step.context():
            result = model(*args, **kwargs)
        found["result"] = seen(result)
    except Exception as e:
        if isinstance(e, (GatecError, Refused)):
            raise
        found["result"] = Raised(e)
    else:
        found["backward"] = backward(list(floats(result))) if grad else None
    found["arguments"] = seen((args, kwargs))
    found["gradients"] = [seen(leaf.grad) for key, leaf in leaves.items() if key > 0]
    found["parameters"] = {n: seen(p.grad) for n, p in model.named_parameters()} if grad else {}
    return found | {"random": seen(torch.get_rng_state()), "state": state(model), "outside": seen(outside())}


def differentiable(value: Any, leaves: dict[int, Tensor]) -> Any:
    """A value in the middle of a model in training is no leaf: a forward may write to it."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout is not torch.strided:
        return value
    if id(value) not in leaves:
        leaves[id(value)] = value.detach().requires_grad_()
        leaves[-id(value)] = leaves[id(value)] * 1
    return leaves[-id(value)]


def backward(outputs: list[Tensor]) -> Raised | None:
    loss = sum((o.abs() if o.is_complex() else o).float().square().sum() for o in outputs)
    try:
        if isinstance(loss, Tensor) and not loss.is_meta:
            loss.backward()
    except RuntimeError as e:  # a forward may make a backward impossible
        return Raised(e)
    return None


def differences(a: Any, b: Any, path: str = "") -> str:
    """Where two dictionaries of `answer` part, in words."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((d for k in a if (d := differences(a[k], b[k], f"{path}.{k}"))), "")
    return "" if a == b else f"{path.lstrip('.')}: {str(a)[:300]} instead of {str(b)[:300]}"


@pytest.mark.parametrize("file", FILES)
def test_every_file_is_read(file: str):
    if file in missing():
        pytest.skip(f"needs {missing()[file]}")
    assert any(case.name.startswith(f"{file}-") for case in cases())


# -- the laws -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def impatient(monkeypatch, request):
    case = request.getfixturevalue("case") if "case" in request.fixturenames else None
    if case is not None and any(words.startswith(ENDLESS) for words in case.refused.values()):
        monkeypatch.setattr("gatec.capture.tracer.SECONDS", 2.0)


@EVERY
def test_captured_or_refused_in_words(case: Case):
    model = case.model()
    args, kwargs = case.first.form()
    with limited():
        program = Program.of(model, args, kwargs)
        for path in program.calls:
            program.graph_of(path)
    assert program.missed.keys() == case.refused.keys(), program.missed or "captured"
    for path, words in case.refused.items():
        line = rf" \({re.escape(case.line())}\)" if case.line() else r"( \(.+:\d+\))?"
        line = "" if words.startswith(AFTERWARDS) else line
        assert re.fullmatch(re.escape(words) + line, program.missed[path]), program.missed[path]


@EACH_THIRD
@pytest.mark.parametrize(("everywhere", "grad"), [
    pytest.param(True, True, id="modules-gradients"),
    *[pytest.param(e, g, id=f"{'modules' if e else 'model'}-{'gradients' if g else 'values'}", marks=pytest.mark.sweep)
      for e, g in ((True, False), (False, True), (False, False))],
])  # fmt: skip
def test_a_guarded_forward_is_the_forward(case: Case, everywhere: bool, grad: bool):
    """Nothing was edited: whatever the call, the result, the gradients and what is left behind are the module's own."""
    steps = [case.first, *case.others, case.first]
    with limited():
        model = case.model()
        yours = [answer(model, s, grad, case.outside) for s in steps]
        model = case.model()
        for module in list(model.modules()) if everywhere else [model]:
            try_install(module)
        for i, (step, wanted) in enumerate(zip(steps, yours, strict=True)):
            assert not (found := differences(answer(model, step, grad, case.outside), wanted)), f"call {i}: {found}"
    falls = sum(unit.fallbacks for m in model.modules() if (unit := unit_of(m)))
    raised = sum(isinstance(wanted["result"], Raised) for wanted in yours)
    if not case.refused:
        assert falls <= case.falls + raised, f"{falls} calls fell back"


def try_install(module: nn.Module) -> None:
    leaf = type(module).__module__.startswith("torch.nn.modules") and not any(module.children())
    if not leaf:
        try:
            install(module).rewrites.append(Nothing())
        except Refused:
            return


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))


BIG = {
    "10,000 layers": lambda: [nn.Linear(8, 8) for _ in range(10_000)],
    "2,000 blocks": lambda: [Deep() for _ in range(2_000)],
}


@pytest.mark.sweep
@pytest.mark.parametrize("build", BIG.values(), ids=[n.replace(" ", "-") for n in BIG])
def test_ten_thousand_modules_take_seconds(build: Callable[[], list[nn.Module]]):
    """Recorded, captured and put into canonical form; an eighth of them must not take much less than an eighth."""
    seconds = {}
    for share in (8, 1):
        layers = build()
        model = nn.Sequential(*layers[: len(layers) // share]).eval()
        started = time.perf_counter()
        program = Program.of(model, (torch.randn(4, 8),), {})
        program.canon()
        seconds[share] = time.perf_counter() - started
        assert not program.missed
    assert seconds[1] < 90 and seconds[1] < 32 * seconds[8], seconds
