"""A model's tensors as safetensors files: in shards where they are large, looked at whole before one is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gatec.errors import GatecError

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
Shapes = dict[str, tuple[int, ...]]


def write(model: nn.Module, folder: Path, mark: str, limit: int) -> None:
    """The tensors in one file, or in several of about `limit` bytes and an index; `mark` says which recipe they go with."""
    parts = list(_parts(_once(model), limit))
    files = (
        [FILE]
        if len(parts) == 1
        else [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    )
    for file, part in zip(files, parts, strict=True):
        save_file({n: _alone(v) for n, v in part.items()}, folder / file, {"gatec": mark})
    if len(parts) > 1:
        where = {n: file for file, part in zip(files, parts, strict=True) for n in part}
        size = sum(v.nbytes for part in parts for v in part.values())
        index = {"metadata": {"total_size": size, "gatec": mark}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def written(folder: Path) -> set[str]:
    """The names of all files that `write` has left in a folder."""
    return {f.name for f in folder.iterdir() if f.name in (FILE, INDEX) or SHARD.fullmatch(f.name)}


def _once(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with tied tensors under the first of their names."""
    named = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise GatecError("a state of tensors alone", found=f"{type(value).__name__} in {name}",
                             hint="torch.save(model.state_dict(), file)")  # fmt: skip
        named[name] = value
    first = {id(v): n for n, v in reversed(named.items())}
    return {n: v.detach() for n, v in named.items() if first[id(v)] == n}


def _parts(values: dict[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    part, size = dict[str, Tensor](), 0
    for name, value in values.items():
        if part and size + value.nbytes > limit:
            yield part
            part, size = {}, 0
        part[name] = value
        size += value.nbytes
    yield part


def _alone(value: Tensor) -> Tensor:
    """The tensor in memory that holds nothing else."""
    own = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
    return value if own else value.clone(memory_format=torch.contiguous_format)


def files(folder: Path) -> list[Path]:
    """The files that hold the tensors of a saved folder."""
    index = folder / INDEX
    if index.is_file() and not (folder / FILE).is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise GatecError("an index of safetensors files", found=str(e)[:120], where=str(index)) from None
    else:
        names = [FILE]
    found = [folder / Path(str(n)).name for n in names]
    for file in found:
        if not file.is_file():
            raise GatecError("a folder that gatec.save wrote", found=f"no {file}", hint="gatec.save(model, folder)")
    return found


def look(folder: Path) -> tuple[Shapes, set[str]]:
    """The shapes of all tensors of a saved folder, and the marks of its files."""
    shapes, marks = Shapes(), set()
    for file in files(folder):
        with opened(file) as f:
            shapes |= {n: tuple(f.get_slice(n).get_shape()) for n in f.keys()}  # noqa: SIM118 - not a dict
            marks |= {(f.metadata() or {}).get("gatec", "")} - {""}
    return shapes, marks


def opened(file: Path) -> Any:
    try:
        return safe_open(str(file), "pt")
    except (SafetensorError, OSError) as e:
        raise _unfit(str(e), file) from None


def fill(model: nn.Module, folder: Path) -> None:
    """Load the tensors of a saved folder into a model that has its structure; all of them, or none."""
    state = model.state_dict(keep_vars=True)
    _checked(state, look(folder)[0], folder)
    for file in files(folder):
        with opened(file) as f, torch.no_grad():
            for name in f.keys():  # noqa: SIM118 - not a dict
                put(model, state, name, f.get_tensor(name))
    complete(model)


def put(model: nn.Module, state: dict[str, Any], name: str, value: Tensor) -> None:
    """One tensor in its place; where the model has none yet (on meta) it becomes the model's own, under all its names."""
    mine = state[name]
    if not mine.is_meta:
        mine.copy_(value)
        return
    value = value.to(mine.dtype, copy=True)  # in a file tensors lie at any address, and products want them aligned
    new = nn.Parameter(value, mine.requires_grad) if isinstance(mine, nn.Parameter) else value
    for tied in (n for n, v in state.items() if v is mine):
        owner, _, leaf = tied.rpartition(".")
        setattr(model.get_submodule(owner), leaf, new)


def complete(model: nn.Module) -> None:
    """Buffers that no file holds, on meta until now: computed anew, where their module or its library says how."""
    for path, module in model.named_modules():
        lost = [n for n, b in module._buffers.items() if b is not None and b.is_meta]
        for name in lost:
            module._buffers[name] = _unset(module._buffers[name])
        if lost:
            _start(model, module)
        for name in lost:
            if not _set(module._buffers[name]):
                raise GatecError("a model whose buffers are saved or can be computed anew",
                                 found=f"{path}.{name} on the meta device".lstrip("."), where=type(model).__name__,
                                 hint="a method reset_buffers() of its module, or buffers on a real device")  # fmt: skip


def _start(model: nn.Module, module: nn.Module) -> None:
    """First values of buffers, by a method that touches no parameter: the module's, or transformers' for every module."""
    bare = next(module.parameters(), None) is None
    names = ("reset_buffers", "reset_parameters") if bare else ("reset_buffers",)
    own: Any = next((getattr(module, n) for n in names if hasattr(module, n)), None)
    every: Any = getattr(model, "_init_weights", None)
    if own is not None:
        own()
    elif bare and every is not None:
        every(module)


def _unset(buffer: Any) -> Tensor:
    """Memory for a buffer, with what no module would put there."""
    return torch.full(buffer.shape, _never(buffer.dtype), dtype=buffer.dtype)


def _set(buffer: Any) -> bool:
    never = _never(buffer.dtype)
    return never != 0 and not bool((buffer.isnan() if never != never else buffer == never).any())


def _never(kind: torch.dtype) -> float:
    if kind.is_floating_point or kind.is_complex:
        return float("nan")
    return 0 if kind is torch.bool else torch.iinfo(kind).min


def _checked(state: dict[str, Any], saved: Shapes, folder: Path) -> None:
    there = {id(state[n]) for n in saved if n in state}
    missing = [n for n, v in state.items() if id(v) not in there]
    unknown = [n for n in saved if n not in state]
    other = [n for n, v in state.items() if n in saved and tuple(v.shape) != saved[n]]
    words = [f"{len(missing)} that it has are not there ({missing[0]})"] if missing else []
    words += [f"{len(unknown)} are not its own ({unknown[0]})"] if unknown else []
    words += [f"{n} is {list(saved[n])} for {list(state[n].shape)}" for n in other[:1]]
    words += [f"{len(other) - 1} more of other sizes"] if len(other) > 1 else []
    if words:
        raise _unfit("; ".join(words), folder)


def _unfit(found: str, where: Path) -> GatecError:
    return GatecError("tensors that fit the rewritten model", found=" ".join(found.split())[:240], where=str(where),
                      hint="load into a fresh model of the same configuration")  # fmt: skip
