"""save() and load(): a model as a recipe of edits and a file of tensors. No pickle, no code in a recipe."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from gatec import storing
from gatec.errors import GatecError
from gatec.rewrite.dense import all_fit

VERSION = 1
Model = TypeVar("Model", bound=nn.Module)


def remember(model: nn.Module, step: dict[str, Any], undo: list[Callable[[], Any]]) -> None:
    """Note one step of the recipe with the model."""
    before = vars(model).get("_gatec_history", ())
    vars(model)["_gatec_history"] = (*before, step)
    undo.append(lambda: vars(model).update(_gatec_history=before) if before else vars(model).pop("_gatec_history"))
    if not before:
        undo.append(model.register_load_state_dict_pre_hook(all_fit).remove)


def forget(model: nn.Module) -> None:
    """Take away what gatec keeps with a model: its history, its reports, its kernels, its look at what is loaded."""
    for name in [n for n in vars(model) if n.startswith("_gatec_")]:
        del vars(model)[name]
    hooks = model._load_state_dict_pre_hooks
    for key in [k for k, kept in hooks.items() if getattr(kept, "hook", None) is all_fit]:
        del hooks[key]


def forgotten(model: nn.Module, kind: str) -> None:
    """The history without steps of one kind."""
    vars(model)["_gatec_history"] = tuple(s for s in history(model) if kind not in s)


def history(model: nn.Module) -> tuple[dict[str, Any], ...]:
    return tuple(vars(model).get("_gatec_history", ()))


def without(model: nn.Module, sites: Iterable[tuple[str, str]]) -> None:
    """The history without what passes put at these sites."""
    gone = set(sites)
    steps = [
        {**s, "sites": [n for n in s["sites"] if (s["pass"], n) not in gone]} if "pass" in s else s
        for s in history(model)
    ]
    recall(model, (s for s in steps if s.get("sites") or "pass" not in s))


def recall(model: nn.Module, steps: Iterable[dict[str, Any]]) -> None:
    """Another recipe for the model as it is now."""
    vars(model)["_gatec_history"] = tuple(steps)


def save(model: nn.Module, folder: str | Path, *, shard: int = 5 * 2**30) -> Path:
    """Write recipe.json (the edits, their options and sites, versions) and the tensors as safetensors into `folder`.

    Tensors of more than `shard` bytes together go into several files with an index. Everything is written beside what is
    there and then put in its place, so that an interrupted save leaves an earlier one as it was.
    """
    steps = history(model)
    if not steps:
        raise GatecError(
            "a model that gatec has rewritten", found=type(model).__name__, hint='gatec.convert(model, "glu")'
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"version": VERSION, "torch": torch.__version__, "model": type(model).__name__, "steps": list(steps)}
    aside = Path(tempfile.mkdtemp(prefix=".gatec-", dir=folder))
    try:
        storing.write(model, aside, _mark(recipe["steps"]), shard)
        (aside / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
        _replace(folder, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _mark(steps: Any) -> str:
    """What says which recipe tensors belong to."""
    return hashlib.sha256(json.dumps(steps, sort_keys=True).encode()).hexdigest()[:16]


def _replace(folder: Path, aside: Path) -> None:
    """New files in place of those of an earlier save, the recipe last."""
    new = {f.name for f in aside.iterdir()} - {"recipe.json"}
    for name in sorted(new):
        (aside / name).replace(folder / name)
    for old in storing.written(folder) - new:
        (folder / old).unlink()
    (aside / "recipe.json").replace(folder / "recipe.json")


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The steps of a saved recipe, checked."""
    file = Path(folder) / "recipe.json"
    try:
        recipe = json.loads(file.read_text())
    except OSError:
        raise GatecError(
            "a folder that gatec.save wrote", found=f"no {file}", hint="gatec.save(model, folder)"
        ) from None
    except ValueError as e:
        raise GatecError("a recipe in JSON", found=str(e)[:120], where=str(file)) from None
    if not isinstance(recipe, dict) or recipe.get("version") != VERSION or not isinstance(recipe.get("steps"), list):
        found = f"version {recipe.get('version')}" if isinstance(recipe, dict) else type(recipe).__name__
        raise GatecError(f"a recipe of version {VERSION}", found=found, where=str(file))
    for step in recipe["steps"]:
        if not isinstance(step, dict) or not _sound(step):
            found = str(step)[:80] if isinstance(step, dict) else type(step).__name__
            raise GatecError("a step of a recipe", found=found, where=str(file))
    if not recipe["steps"]:
        raise GatecError("a recipe with steps", found="none", where=str(file))
    return list(recipe["steps"])


def _sound(step: dict[str, Any]) -> bool:
    """Whether a step is {"pass": text, "options": {...}, "sites": [text]} or {"compact": [text], "kind": text},
    {"channels": {...}} for channel gates, {"removed": {...}} for what they closed."""
    if "removed" in step or "channels" in step:
        return isinstance(step.get("removed", step.get("channels")), dict)
    sites = step.get("compact", step.get("sites"))
    texts = isinstance(sites, list) and all(isinstance(s, str) for s in sites)
    return (texts and isinstance(step.get("kind", ""), str)) and (
        "compact" in step or (isinstance(step.get("pass"), str) and isinstance(step.get("options"), dict))
    )


def fill(model: Model, folder: str | Path) -> Model:
    """Load the tensors of a saved folder into a model that has its structure; all of them, or none."""
    if storing.look(Path(folder))[1] - {_mark(read(folder))}:
        raise GatecError("a recipe and tensors of one save", found="tensors of another recipe", where=str(folder),
                         hint="save again: an earlier save was interrupted, or files were mixed")  # fmt: skip
    storing.fill(model, Path(folder))
    return model


def shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    return storing.look(Path(folder))[0]
