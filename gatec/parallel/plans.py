"""Plans for torch's parallelize_module: the experts of a converted model over one dimension of a mesh."""

from __future__ import annotations

from typing import Literal, TypeVar

from torch import fx, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from gatec.capture import Call, Unit, unit_of
from gatec.capture.unit import compiled
from gatec.errors import GatecError, Refused
from gatec.grouped import grouped_linear
from gatec.parallel.cut import Cut, Exchange
from gatec.rewrite import copied

Model = TypeVar("Model", bound=nn.Module)
Tokens = Literal["apart", "same"]


class Experts(ParallelStyle):
    """Each process holds its share of a module's experts; nothing else of the module is sharded.

    tokens   "apart": every process has tokens of its own, which travel to their experts and back (all-to-all). The
             gradient of an expert is that of the mean of the processes' losses, as data parallelism makes it.
             "same": every process has all tokens, and the experts' results are summed up (all-reduce).
    """

    def __init__(self, tokens: Tokens = "apart") -> None:
        super().__init__()
        if tokens not in ("apart", "same"):
            raise GatecError('tokens="apart" or tokens="same"', found=repr(tokens))
        self.tokens = tokens

    def __repr__(self) -> str:
        return f"Experts(tokens={self.tokens!r})"

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        unit, cut = experts_of(module, device_mesh.size())
        exchange = Exchange(device_mesh.size(), self.tokens == "apart")
        for path, layout in cut.layouts.items():
            owner, _, name = path.rpartition(".")
            held = module.get_submodule(owner)
            old = getattr(held, name)
            whole = distribute_tensor(old.detach(), device_mesh, [layout.placement], src_data_rank=self.src_data_rank)
            setattr(held, name, nn.Parameter(whole, requires_grad=old.requires_grad))
        for graphs in unit.graphs.values():
            for i, known in enumerate(graphs):
                graph = copied(known.graph)
                exchange(module, graph, Call((), {}))
                graphs[i] = compiled(graph)
        unit.rewrites.append(exchange)
        return module


def ep_plan(model: nn.Module) -> dict[str, Experts]:
    """Expert parallelism: every process has tokens of its own, and its share of the experts of every mixture."""
    return {path: Experts("apart") for path in mixtures(model)}


def tp_plan(model: nn.Module) -> dict[str, Experts]:
    """Tensor parallelism: every process has all tokens, and its share of the experts of every mixture."""
    return {path: Experts("same") for path in mixtures(model)}


def expert_parallel(model: Model, mesh: DeviceMesh) -> Model:
    """`model` with the experts of its mixtures dealt out over a one-dimensional mesh, in place.

    Give every process tokens of its own. Parameters that are not experts stay as they are: average their gradients over
    the processes, as with any data parallelism (`fully_shard(..., ignored_params=...)`).
    """
    plan: dict[str, ParallelStyle] = {**ep_plan(model)}
    for path in plan:
        experts_of(model.get_submodule(path), mesh.size(), path)
    parallelize_module(model, mesh, plan)
    return model


def mixtures(model: nn.Module) -> list[str]:
    """The rewritten modules that compute experts, by path; each could be dealt out."""
    found = [p for p, m in model.named_modules() if (unit := unit_of(m)) and unit.rewrites and _grouped(p, unit)]
    if not found:
        raise GatecError("a model with a mixture of experts", found=f"none in {type(model).__name__}",
                         hint='gatec.convert(model, "moe") before it is sharded')  # fmt: skip
    for path in found:
        experts_of(model.get_submodule(path), path=path)
    return found


def experts_of(module: nn.Module, processes: int = 1, path: str = "") -> tuple[Unit, Cut]:
    """The experts in a module's graph, where they can be dealt out over so many processes."""
    where, unit = path or type(module).__name__, unit_of(module)
    if unit is None or not _grouped(where, unit):
        raise GatecError("a module with a mixture of experts", found="none", where=where)
    if any(isinstance(r, Exchange) for r in unit.rewrites):
        raise GatecError("a mixture whose experts lie together", found="experts that are sharded already", where=where)
    try:
        cut = Cut.of(_graphs(unit)[0])
        layouts, _ = cut.layouts, cut.common
    except Refused as e:
        raise GatecError("experts that can be dealt out", found=str(e), where=where) from None
    blocks = next(iter(layouts.values())).blocks
    if blocks % processes:
        raise GatecError(f"experts that {processes} processes share evenly", found=f"{blocks} experts", where=where,
                         hint="a mesh whose size divides the number of experts")  # fmt: skip
    for name in layouts:
        if isinstance(module.get_parameter(name), DTensor):
            raise GatecError("parameters that are not sharded yet", found=f"a DTensor in {name}", where=where,
                             hint="deal out the experts first, then fully_shard")  # fmt: skip
    return unit, cut


def _graphs(unit: Unit) -> list[fx.Graph]:
    return [g.graph for known in unit.graphs.values() for g in known]


def _grouped(path: str, unit: Unit) -> bool:
    graphs = _graphs(unit)
    if not graphs:
        raise GatecError("a rewritten module that has run", found="no graph of it yet", where=path,
                         hint="run the model once before its experts are dealt out")  # fmt: skip
    return any(n.target is grouped_linear for n in graphs[0].nodes)
