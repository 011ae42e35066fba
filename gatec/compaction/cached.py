"""One step of decoding with a key-value cache, before and after: what a forward without a cache cannot show."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatec.capture import untouched
from gatec.program import Program, cloned
from gatec.verify import distance, tensors

TOKENS = "decoder_input_ids", "input_ids"


@dataclass(frozen=True)
class Cached:
    """What a model gives for its last token when those before it are in its cache."""

    args: dict[str, Any]
    tokens: str
    before: Any

    @classmethod
    def of(cls, program: Program) -> Cached | None:
        """None for a model without a cache, or where its example inputs are not tokens."""
        names = list(inspect.signature(program.model.forward).parameters)
        args = {**dict(zip(names, program.args, strict=False)), **program.kwargs}
        tokens = next((n for n in TOKENS if isinstance(args.get(n), Tensor) and args[n].dim() == 2), None)
        if tokens is None or args[tokens].shape[1] < 2 or not {"use_cache", "past_key_values"} <= set(names):
            return None
        args = {n: v for n, v in args.items() if n in TOKENS}
        try:
            return cls(args, tokens, _step(program.model, args, tokens))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError):
            return None

    @property
    def rounding(self) -> float:
        """The relative drift that is rounding and not change."""
        return max(torch.finfo(t.dtype).eps for t in tensors(self.before) if t.is_floating_point()) * 16

    def drift(self, model: nn.Module) -> float:
        return distance(_step(model, self.args, self.tokens), self.before)


def _step(model: nn.Module, args: dict[str, Any], tokens: str) -> Any:
    args = cloned(args)
    with torch.no_grad(), untouched(model):
        past = model(**{**args, tokens: args[tokens][:, :-1]}, use_cache=True).past_key_values
        return model(**{**args, tokens: args[tokens][:, -1:]}, past_key_values=past, use_cache=True)[0]
