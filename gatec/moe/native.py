"""upcycle(): a dense language model of transformers as a mixture of transformers, that needs no gatec from then on."""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from gatec.capture import unit_of, untouched
from gatec.errors import GatecError
from gatec.moe.copies import alike, check, redrawn, seeded
from gatec.moe.families import FAMILIES, Family
from gatec.program import Edit
from gatec.report import Report, attach
from gatec.verify import distance, finite

HINT = 'gatec.upcycle(model, to="mixtral", experts=8, top_k=2)'
TOKENS = 16  # of the text on which the two models are compared


@dataclass(frozen=True)
class Plan:
    """What is asked for: copies of each MLP, how many of them a token sees, and how many experts a copy is cut into."""

    family: Family
    copies: int
    top_k: int
    shards: int
    noise: float


def upcycle(model: Any, to: str | None = None, *, experts: int = 8, top_k: int = 2, shards: int = 1, seed: int = 0,
            noise: float = 0.0, **config: Any) -> Any:  # fmt: skip
    """A mixture with `experts` copies of every MLP of `model`, as a plain model of transformers; `model` is not touched.

    to       the model type of the mixture: "mixtral", "qwen3_moe" ...; the one that goes with the model if not given
    top_k    copies that each token sees; their weights sum to one, so that the logits are those of `model`
    shards   experts that each copy is cut into; a token sees top_k * shards of them
    noise    the share of hidden units that are drawn anew in each expert, so that they differ; then the logits move
    config   more fields of the mixture's config, such as router_aux_loss_coef

    `gatec.report(result)` tells the parameters and how far the logits moved. Raises GatecError where the mixture cannot
    express what the model does.
    """
    family = _family(model, to)
    _plain(model)
    width = _width(model, family)
    check(experts, top_k, shards, width, noise, HINT)
    plan = Plan(family, experts, top_k, shards, noise)
    mixture = _built(model, _config(model.config, plan, width, config))
    filled = _filled(model, mixture, plan, seeded(seed))
    _reported(model, mixture, plan, filled)
    return mixture


def _family(model: Any, to: str | None) -> Family:
    """The row of the table, for a model that transformers built."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if not type(model).__module__.startswith("transformers.") or not hasattr(model, "lm_head"):
        raise GatecError("a causal language model of transformers", found=type(model).__name__,
                         hint='gatec.convert(model, "upcycle") makes mixtures inside any model')  # fmt: skip
    mine = [f for f in FAMILIES if f.dense == kind]
    found = [f for f in mine if to in (None, f.mixture)]
    if not found:
        known = ", ".join(f"{f.dense} -> {f.mixture}" for f in FAMILIES)
        asked = f"{kind} -> {to}" if to else str(kind)
        raise GatecError(
            "a mixture of transformers with the model's own attention", found=asked, hint=f"there are {known}"
        )
    return found[0]


def _plain(model: nn.Module) -> None:
    """Refuse weights that cannot be copied."""
    found = [n for n, m in model.named_modules() if unit_of(m)]
    if found:
        raise GatecError("a model as transformers built it", found=f"{found[0]} was rewritten by gatec",
                         hint="upcycle first, then convert")  # fmt: skip
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise GatecError("weights to copy", found=f"{name} is on the meta device", hint="load the checkpoint first")
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            raise GatecError("plain weights to copy", found=f"{name} is a {type(parameter).__name__} of {parameter.dtype}",
                             hint="upcycle before quantizing or sharding")  # fmt: skip
    finite(model, type(model).__name__)


def _width(model: Any, family: Family) -> int:
    found = {p.shape[0] for n, p in model.named_parameters() if n.endswith(family.mlp[0])}
    if len(found) != 1:
        raise GatecError(
            f"MLPs of one width at {family.mlp[0]}", found=f"widths {sorted(found)}", where=type(model).__name__
        )
    return int(found.pop())


# -- the mixture's config ---------------------------------------------------------------------------------------------


def _config(dense: Any, plan: Plan, width: int, more: dict[str, Any]) -> Any:
    """The dense model's config in the mixture's words."""
    auto, family = sys.modules["transformers"].AutoConfig, plan.family
    declared = {f.name for f in fields(auto.for_model(family.mixture))}
    _expressed(dense, family, declared)
    wrong = sorted(set(more) - declared)
    if wrong:
        raise GatecError(f"fields of the config of {family.mixture}", found=", ".join(wrong))
    sized = {**family.fixed, **family.fields(plan.copies, plan.top_k, plan.shards, width)}
    for name in sorted(sized.keys() & more.keys()):
        if more[name] != sized[name]:
            raise GatecError(f"{name}={sized[name]!r}, with which the mixture is the dense model at birth",
                             found=f"{name}={more[name]!r}", hint=HINT)  # fmt: skip
    said = {n: v for n, v in dense.to_dict().items() if n in declared or n in family.kept or n not in _fields(dense)}
    for own in ("model_type", "architectures", "transformers_version"):
        said.pop(own, None)
    return auto.for_model(family.mixture, **{**said, **sized, **more})


def _expressed(dense: Any, family: Family, declared: set[str]) -> None:
    """Refuse what the dense config says and the mixture's cannot."""
    usual = type(dense)()
    for name in sorted(_fields(dense) - declared - {*family.ignored, *family.kept}):
        if getattr(dense, name) != getattr(usual, name):
            raise GatecError(f"a model that {family.mixture} can express", found=f"{name}={getattr(dense, name)!r}",
                             where=type(dense).__name__)  # fmt: skip
    if getattr(dense, "use_sliding_window", False):
        raise GatecError(f"a model that {family.mixture} can express", where=type(dense).__name__,
                         found="a sliding window in some layers (use_sliding_window=True)")  # fmt: skip


def _fields(config: Any) -> set[str]:
    return {f.name for f in fields(type(config))}


def _built(model: Any, config: Any) -> Any:
    """The mixture with weights that are still to be filled; global random state is left alone."""
    library = sys.modules["transformers"]
    first = next(model.parameters())
    with torch.random.fork_rng(devices=[]), _uninitialised():
        mixture = library.AutoModelForCausalLM.from_config(config, dtype=first.dtype,
                                                           attn_implementation=model.config._attn_implementation)  # fmt: skip
    mixture.tie_weights()
    mixture.generation_config = copy.deepcopy(model.generation_config)
    return mixture.to(first.device).train(model.training)


def _uninitialised() -> Any:
    """Where transformers can leave weights as they are allocated, it does."""
    skipped = getattr(sys.modules.get("transformers.initialization"), "no_init_weights", nullcontext)
    return skipped()


# -- its weights ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _filled(model: nn.Module, mixture: nn.Module, plan: Plan, generator: torch.Generator) -> list[str]:
    """Copy every weight; the paths of the layers whose MLP became a mixture."""
    dense, left = dict(model.named_parameters()), dict(mixture.named_parameters(remove_duplicate=False))
    layers = [n.removesuffix(plan.family.mlp[0]) for n in dense if n.endswith(plan.family.mlp[0])]
    for layer in layers:
        _layer(dense, left, layer, plan, mixture, generator)
    filled = set()
    for name, value in dense.items():
        target = _taken(left, name, mixture)
        if target.shape != value.shape:
            raise GatecError(f"{name} of shape {list(target.shape)}, as {type(mixture).__name__} has it",
                             found=f"{list(value.shape)}", where=type(model).__name__)  # fmt: skip
        filled.add(id(target.copy_(value)))
    unknown = [n for n, p in left.items() if id(p) not in filled]  # tied ones are there under several names
    if unknown:
        raise GatecError(
            f"all weights of {type(mixture).__name__}", found=f"none for {unknown[0]}", where=type(model).__name__
        )
    return layers


def _layer(
    dense: dict[str, Any], left: dict[str, Any], layer: str, plan: Plan, mixture: Any, generator: torch.Generator
) -> None:
    """Take the MLP of one layer out of `dense` and fill the mixture of that layer."""
    gate, up, down = (dense.pop(layer + n) for n in plan.family.mlp)
    both, back, router = (_taken(left, layer + n, mixture) for n in plan.family.experts)
    _experts(plan, (gate, up, down), (both, back), generator)
    std = float(getattr(mixture.config, "initializer_range", 0.02))
    router.copy_(alike(plan.copies, plan.shards, router.shape[1], std, generator))
    for name in [n for n in left if n.startswith(tuple(layer + e for e in plan.family.empty))]:
        left.pop(name).zero_()


def _taken(left: dict[str, Any], name: str, mixture: Any) -> Any:
    if name not in left:
        raise GatecError(f"a parameter {name} in {type(mixture).__name__}", found="none",
                         hint="the model has what the mixture lacks, or transformers has renamed it")  # fmt: skip
    return left.pop(name)


def _experts(plan: Plan, dense: tuple[Tensor, Tensor, Tensor], stacked: tuple[Tensor, Tensor],
             generator: torch.Generator) -> None:  # fmt: skip
    """Experts lie copy by copy, and shard by shard in each; only what goes down is scaled."""
    gate, up, down = (w.unflatten(n, (plan.shards, -1)) for w, n in zip(dense, (0, 0, 1), strict=True))
    both, back = stacked
    both.unflatten(0, (plan.copies, plan.shards)).copy_(torch.cat([gate, up], 1))
    back.unflatten(0, (plan.copies, plan.shards)).copy_(down.transpose(0, 1) * plan.shards)
    if plan.noise:
        redrawn([*both.chunk(2, 1), back.transpose(1, 2)], plan.noise, generator)


# -- proof ------------------------------------------------------------------------------------------------------------


def _reported(model: Any, mixture: Any, plan: Plan, layers: list[str]) -> None:
    """Compare the logits, refuse what is not rounding, and keep the report with the mixture."""
    tokens = _tokens(model)
    drift = distance(_logits(mixture, tokens), _logits(model, tokens))
    bound = torch.finfo(next(model.parameters()).dtype).eps * 64
    if not plan.noise and not drift <= bound:
        raise GatecError(f"{type(mixture).__name__} with the logits of {type(model).__name__}", found=f"moved by {drift:.1e}",
                         hint="the model's config says something that the mixture reads otherwise")  # fmt: skip
    block = plan.family.experts[0].partition(".")[0]
    edits = tuple(Edit("upcycle", layer + block, "put", _words(model, mixture, plan, layer)) for layer in layers)
    attach(mixture, Report(edits, drift), [])


def _words(model: Any, mixture: Any, plan: Plan, layer: str) -> str:
    counts = [sum(p.numel() for p in m.get_submodule(layer[:-1]).parameters()) for m in (model, mixture)]
    cut = f"{plan.copies} copies" + (f" of {plan.shards} experts each" if plan.shards > 1 else "")
    return (
        f"{cut}, {plan.top_k * plan.shards} experts per token, {counts[0]:,} parameters of the layer now {counts[1]:,}"
    )


def _tokens(model: Any) -> Tensor:
    vocabulary = model.get_input_embeddings().weight
    drawn = torch.randint(len(vocabulary), (1, TOKENS), generator=torch.Generator().manual_seed(0))
    return drawn.to(vocabulary.device)


def _logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad(), untouched(model):
        found: Tensor = model.eval()(input_ids=tokens, use_cache=False).logits
    return found
