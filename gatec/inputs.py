"""Example inputs: what the user gives, put in order, or what the model itself says that it eats."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gatec.capture import untouched
from gatec.errors import GatecError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

BATCH, LENGTH, SIDE = 2, 7, 32
HINT = "gatec.scan(model, inputs=...) with a tensor, a tuple of arguments or a dict of keywords"


def example_inputs(model: nn.Module, inputs: Any = None) -> Inputs:
    """The arguments of one call of `model`; reproducible, and global random state is left alone."""
    if inputs is not None:
        return _given(inputs)
    made = _timm(model) or _transformers(model) or _first_layer(model)
    if made is None:
        raise GatecError(
            f"example inputs for {type(model).__name__}",
            found="a model that does not say what it eats: no transformers or timm config, and no "
            "leading Linear, Conv or Embedding under a forward of one tensor",
            hint=HINT,
        )
    return made


def one_call(model: nn.Module, inputs: Any = None) -> Inputs:
    """`example_inputs` without a cache, which would outlive the call."""
    args, kwargs = example_inputs(model, inputs)
    if keeps_cache(model):
        kwargs.setdefault("use_cache", False)
    return args, kwargs


def keeps_cache(model: nn.Module) -> bool:
    return "use_cache" in inspect.signature(model.forward).parameters


def pattern(only: str | None, of: str = "site names") -> re.Pattern[str] | None:
    """A regular expression that a user gave; None where he gave none."""
    try:
        return re.compile(only) if only else None
    except (re.error, TypeError) as e:
        raise GatecError(
            f"`only` as a regular expression over {of}", found=f"{only!r}: {e}", hint="only='layers\\.3'"
        ) from None


def batches(data: Any) -> Iterable[Any]:
    """Of calibration data: one batch, or many."""
    found: Iterable[Any] = [data] if isinstance(data, (Tensor, Mapping)) else data
    return found


def _given(inputs: Any) -> Inputs:
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):  # a dict, or the BatchEncoding of a tokenizer
        return (), {str(name): value for name, value in inputs.items()}
    if isinstance(inputs, tuple) and len(inputs) == 2:
        args, kwargs = inputs
        if isinstance(args, tuple) and isinstance(kwargs, dict):
            return args, dict(kwargs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    found = f"{inputs!r:.60}, a value of type {type(inputs).__name__}"
    raise GatecError("example inputs as tensors", found=found, hint=HINT)


class _Maker:
    """Makes tensors of a model's dtype and device from a random generator of its own."""

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
        self.generator = torch.Generator().manual_seed(0)

    def values(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def ids(self, vocabulary: int, avoid: frozenset[int] = frozenset()) -> Tensor:
        """Token numbers; `avoid` those with a meaning, such as padding or an image's place."""
        allowed = [i for i in range(min(vocabulary, 1024)) if i not in avoid] or [0]
        picks = torch.randint(len(allowed), (BATCH, LENGTH), generator=self.generator)
        return torch.tensor(allowed)[picks].to(self.device)


def _timm(model: nn.Module) -> Inputs | None:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else None
    if size is None:
        return None
    # A model built for another image size than its weights were keeps the old one in its config.
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)
    side = tuple(built) if isinstance(built, (tuple, list)) else tuple(size[1:])
    channels = getattr(next(_convolutions(model), None), "in_channels", size[0])
    return (_Maker(model).values(BATCH, channels, *side),), {}


def _convolutions(model: nn.Module) -> Iterator[nn.Module]:
    return (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))


def _transformers(model: nn.Module) -> Inputs | None:
    config = getattr(model, "config", None)
    if not hasattr(config, "model_type") or not hasattr(model, "main_input_name"):
        return None
    make, takes = _Maker(model), inspect.signature(model.forward).parameters
    dummies: dict[str, Tensor] = getattr(model, "dummy_inputs", {})
    build = BUILDERS.get(str(model.main_input_name))
    if build is None:
        dummy = {k: v.to(make.device) for k, v in dummies.items() if k in takes}
        return ((), dummy) if dummy else None
    kwargs: dict[str, Any] = {str(model.main_input_name): build(make, config)}
    for name, part in _companions(model, config):
        if name in takes and name not in kwargs:
            kwargs[name] = BUILDERS[name](make, part)
    if keeps_cache(model):
        kwargs["use_cache"] = False
    return (), kwargs


def _companions(model: nn.Module, config: Any) -> Iterator[tuple[str, Any]]:
    """Beside the main input: a decoder's tokens; the other side of a contrastive model."""
    if getattr(config, "is_encoder_decoder", False):
        yield "decoder_input_ids", config
    can_generate = getattr(model, "can_generate", lambda: False)
    if not can_generate() and hasattr(config, "text_config"):
        if hasattr(config, "vision_config"):
            yield "pixel_values", config
        if hasattr(config, "audio_config"):
            yield "input_features", config
        yield "input_ids", config


def _look(config: Any, *names: str, default: Any = None) -> Any:
    """The first of `names` that the config or one of its parts knows."""
    parts = [config, *(getattr(config, part, None) for part in PARTS)]
    for part in parts:
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


PARTS = ("text_config", "vision_config", "audio_config", "encoder", "decoder", "backbone_config")


def _tokens(make: _Maker, config: Any) -> Tensor:
    values = config.to_dict().items()
    special = [v for k, v in values if k.endswith(("_token_id", "_token_index"))]
    avoid = frozenset(v for v in special if isinstance(v, int))
    return make.ids(_look(config, "vocab_size", default=2), avoid)


def _decoder_tokens(make: _Maker, config: Any) -> Tensor:
    return _tokens(make, getattr(config, "decoder", None) or config)


def _image(make: _Maker, config: Any) -> Tensor:
    config = getattr(config, "vision_config", config)
    size = _look(config, "image_size", "img_size", default=64)
    if isinstance(size, Mapping):
        size = (size["height"], size["width"])
    high, wide = size if isinstance(size, (tuple, list)) else (size, size)
    channels = _look(config, "num_channels", "in_channels", "in_chans", default=3)
    frames = _look(config, "num_frames")
    return make.values(BATCH, *([frames] if frames else []), channels, high, wide)


def _spectrum(make: _Maker, config: Any) -> Tensor:
    """Whisper halves time once and wants its whole window; the others take any, time first."""
    mel = _look(config, "num_mel_bins", default=80)
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        return make.values(BATCH, mel, 2 * int(config.max_source_positions))
    width = _look(config, "feature_projection_input_dim", "input_feat_per_channel", default=mel)
    return make.values(BATCH, 64, width)


def _sound(make: _Maker, config: Any) -> Tensor:
    """A waveform, or a spectrogram for the models that cut one into patches."""
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return make.values(BATCH, config.max_length, config.num_mel_bins)
    hop = _look(config, "inputs_to_logits_ratio", default=320)
    return make.values(BATCH, 16 * int(hop))


BUILDERS: dict[str, Callable[[_Maker, Any], Tensor]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _decoder_tokens,
    "pixel_values": _image,
    "input_features": _spectrum,
    "input_values": _sound,
}


def _first_layer(model: nn.Module) -> Inputs | None:
    if not _takes_one(model):
        return None
    make = _Maker(model)
    for layer in model.modules():
        tried = list(_eaten_by(layer, make))
        if tried:
            return next((((x,), {}) for x in tried if _runs(model, x)), None)
    return None


def _takes_one(model: nn.Module) -> bool:
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return bool(positional) and required in ([], positional[:1])


def _eaten_by(layer: nn.Module, make: _Maker) -> Iterator[Tensor]:
    """What a known layer takes, the likeliest shape first; nothing for any other module."""
    if isinstance(layer, nn.Linear):
        yield make.values(BATCH, layer.in_features)
        yield make.values(BATCH, LENGTH, layer.in_features)
    elif isinstance(layer, nn.Embedding):
        yield make.ids(layer.num_embeddings)
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        for side in (SIDE, 2 * SIDE, 224):
            yield make.values(BATCH, layer.in_channels, *[side] * len(layer.kernel_size))
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        yield make.values(BATCH, LENGTH, *layer.normalized_shape)
    elif isinstance(layer, nn.RNNBase):
        yield make.values(BATCH, LENGTH, layer.input_size)
    elif type(layer).__name__ == "Conv1D":  # transformers' transposed Linear
        yield make.values(BATCH, LENGTH, int(layer.get_parameter("weight").shape[0]))


def _runs(model: nn.Module, x: Tensor) -> bool:
    try:
        with untouched(model), torch.no_grad():
            model(x)
    except Exception:  # whatever the user's code raises, this was not the shape it wants
        return False
    return True
