"""A model from a line of text: FILE.py:NAME, a folder, transformers:llama or timm:resnet50."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from gatec.errors import GatecError
from gatec.tiny import parse_options, tiny_config
from gatec.vision import torchvision_loads

__all__ = ["Found", "find", "load", "names", "torchvision_loads"]

FORMS = "FILE.py:NAME, a transformers folder, transformers:llama or timm:resnet50"

# The head that a model type is usually run with; a type stands in several of transformers' tables.
HEADS = (
    ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", "AutoModelForSpeechSeq2Seq"),
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "AutoModelForSeq2SeqLM"),
    ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "AutoModelForMaskedLM"),
    ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "AutoModelForCausalLM"),
    ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "AutoModelForImageClassification"),
    ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "AutoModelForImageTextToText"),
    ("MODEL_FOR_CTC_MAPPING_NAMES", "AutoModelForCTC"),
)


@dataclass(frozen=True)
class Found:
    """A model and, where its file says so, what to call it with."""

    model: nn.Module
    inputs: Any = None


def load(spec: str, device: str = "cpu") -> nn.Module:
    """The model that `spec` names, in eval mode on `device`; random weights are always the same."""
    return find(spec, device).model


def find(spec: str, device: str = "cpu") -> Found:
    """Like `load`, with the example inputs that a FILE.py may declare as `inputs()`."""
    where = _device(device)
    with _seeded():
        found = _reader(spec)()
    try:
        return Found(found.model.eval().to(where), found.inputs)
    except (RuntimeError, NotImplementedError) as error:
        raise GatecError(f"{spec} on {device}", found=_words(error)) from error


def names() -> list[str]:
    """Every model that can be had by name alone, with the packages that are installed."""
    kinds = _kinds() if _installed("transformers") else []
    timms = _timm().list_models() if _installed("timm") else []
    return [*(f"transformers:{kind}" for kind in kinds), *(f"timm:{name}" for name in timms)]


def _reader(spec: str) -> Callable[[], Found]:
    scheme, colon, rest = spec.partition(":")
    name, _, options = rest.partition("?")
    if colon and scheme == "transformers":
        return lambda: Found(_of_kind(name, options))
    if colon and scheme == "timm":
        return lambda: Found(_of_timm(name, options))
    path, colon, name = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return lambda: _of_file(Path(path), name)
    if Path(spec).is_dir():
        return lambda: Found(_of_folder(Path(spec)))
    if spec.endswith(".py"):
        hint = f"{spec}:NAME, where NAME is a class, a function or a model in it"
        raise GatecError("a model as FILE.py:NAME", found=f"{spec!r} without a name", hint=hint)
    raise GatecError(f"a model as {FORMS}", found=f"{spec!r}, and no such folder", hint=_near(spec))


def _near(spec: str) -> str:
    """What the user may have meant: a bare `llama` or `resnet50` is the commonest slip."""
    word = spec.rpartition(":")[2].rpartition("/")[2].lower()
    kinds = get_close_matches(word, _kinds(), 1, 0.8) if _installed("transformers") else []
    return f"transformers:{kinds[0]}" if kinds else "gatec scan transformers:llama"


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _device(device: str) -> torch.device:
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise GatecError("a device", found=repr(device), hint="cpu, cuda or cuda:0") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        found = f"PyTorch {torch.__version__}, which sees no CUDA device here"
        raise GatecError(f"a model on {device}", found=found, hint="cpu")
    return where


def _words(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _need(package: str) -> ModuleType:
    if not _installed(package):
        found = f"no package {package} in this Python"
        raise GatecError(f"{package} models", found=found, hint=f"pip install {package}")
    torchvision_loads()
    return importlib.import_module(package)


def _timm() -> Any:
    return _need("timm")


def _kinds() -> list[str]:
    _need("transformers")
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    tables = ["MODEL_MAPPING_NAMES", *(table for table, _ in HEADS)]
    built = set().union(*(getattr(modeling_auto, table) for table in tables))
    return sorted(built & set(CONFIG_MAPPING_NAMES))


def _of_kind(kind: str, options: str) -> nn.Module:
    _known("transformers model type", "transformers", kind, _kinds())
    spec = f"transformers:{kind}"
    given = parse_options(options)
    try:
        return _from_config(tiny_config(kind, given))
    except GatecError:
        raise
    except Exception as error:  # a config class may raise anything about sizes it does not like
        hint = f"{spec}?NAME=VALUE with fields of its config, or a folder with a config.json"
        raise GatecError(f"a small {spec}", found=_words(error), hint=hint) from error


def _from_config(config: Any) -> nn.Module:
    transformers = _need("transformers")
    from transformers.models.auto import modeling_auto

    # CLIP and its like stand in the table of image classifiers, which would leave half of them out.
    pairs = hasattr(config, "text_config") and hasattr(config, "vision_config")
    for table, head in HEADS:
        if pairs and head == "AutoModelForImageClassification":
            continue
        heads = getattr(modeling_auto, table).get(config.model_type)
        if heads is not None:
            if not isinstance(heads, str):  # several classes share the type; the first is the usual
                config.architectures = [heads[0]]
            model: nn.Module = getattr(transformers, head).from_config(config)
            return model
    plain: nn.Module = transformers.AutoModel.from_config(config)
    return plain


def _of_timm(name: str, options: str) -> nn.Module:
    _known("timm model", "timm", name, _timm().list_models())
    try:
        model: nn.Module = _timm().create_model(name, pretrained=False, **parse_options(options))
    except (TypeError, ValueError, RuntimeError) as error:
        raise GatecError(f"timm:{name}?{options}", found=_words(error)) from error
    return model


def _known(what: str, scheme: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, 3) or known[:3]
        hint = ", ".join(f"{scheme}:{n}" for n in near)
        raise GatecError(f"a {what}", found=f"{name!r}, which is none of {len(known)}", hint=hint)


def _of_folder(folder: Path) -> nn.Module:
    if not (folder / "config.json").is_file():
        found = f"{folder}, which has no config.json"
        raise GatecError("a transformers folder", found=found, hint=FORMS)
    transformers = _need("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        auto = getattr(transformers, (config.architectures or [""])[0] or "-", None)
        if not any((*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))):
            return auto._from_config(config) if auto else _from_config(config)
        loaded: nn.Module = (auto or transformers.AutoModel).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise GatecError(f"a transformers model in {folder}", found=_words(error)) from error
    return loaded


def _of_file(path: Path, name: str) -> Found:
    if not path.is_file():
        raise GatecError("a model as FILE.py:NAME", found=f"{str(path)!r}, and no such file")
    module = _run(path)
    if not hasattr(module, name):
        public = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        near = get_close_matches(name, public, 3, 0.4)
        found = f"no {name!r} in {path}"
        raise GatecError("a model as FILE.py:NAME", found=found, hint=", ".join(near))
    model = _made(getattr(module, name), f"{path}:{name}")
    inputs = getattr(module, "inputs", None)
    return Found(model, _called(inputs, path) if callable(inputs) else inputs)


SIZES = {"batch": 2, "length": 6}


def _called(inputs: Callable[..., Any], path: Path) -> Any:
    """What a file's `inputs()` gives; it may ask for a batch and a length."""
    wanted = inspect.signature(inputs).parameters.values()
    asked = [p.name for p in wanted if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not set(asked) <= set(SIZES):
        raise GatecError(
            "inputs() of a file to need nothing but a batch and a length", found=", ".join(asked), where=str(path)
        )
    return inputs(**{name: SIZES[name] for name in asked})


def _run(path: Path) -> ModuleType:
    """Import a file by path; its folder is importable meanwhile, its classes can be pickled."""
    title = f"gatec_zoo_{path.stem}_{abs(hash(path.resolve())):x}"
    spec = importlib.util.spec_from_file_location(title, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[title]
        raise GatecError(f"a model from {path}", found=_words(error), where=_line(error)) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _line(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""


def _made(thing: Any, spec: str) -> nn.Module:
    try:
        made = thing() if callable(thing) and not isinstance(thing, nn.Module) else thing
    except Exception as error:
        hint = "a class or function that takes no arguments"
        raise GatecError(f"a model from {spec}", found=_words(error), hint=hint) from error
    if not isinstance(made, nn.Module):
        found = f"{spec} gave a {type(made).__name__}, which is no torch.nn.Module"
        raise GatecError("a model as FILE.py:NAME", found=found)
    return made
