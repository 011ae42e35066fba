"""convert, compact, why: read this file first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from gatec.blocks import replayed
from gatec.capture import unit_of
from gatec.catalog import Step, Tool, steps
from gatec.catalog import gate as gate_named
from gatec.dealing import dealt
from gatec.embeddings import ROWS, narrowed
from gatec.errors import GatecError, in_short
from gatec.gate import Gate
from gatec.history import fill, read, remember, shapes
from gatec.inputs import one_call, pattern
from gatec.program import Edit, Program
from gatec.pruning import Plan, carried_out, channel_gates, gated_again, has_gates
from gatec.report import Report, attach
from gatec.rewrite import added, back, put
from gatec.shrink import HIDDEN, shrink
from gatec.trail import note
from gatec.verify import copied, distance, filled, finite, forward, together

Model = TypeVar("Model", bound=nn.Module)
PLAIN = (int, float, str, bool, type(None))


def convert(model: Model, *passes: Any, pass_: Any = None, inputs: Any = None, only: str | None = None,
            progress: Callable[[str], Any] | None = None, group: Any = None, **options: Any) -> Model:  # fmt: skip
    """A copy of `model` with the gates of `passes` put in; `model` is not touched.

    passes   "moe", "glu,prune", "moe(experts=8,top_k=2)", a Gate, or a list of these; also pass_= and **{"pass": ...}
    inputs   what the model eats: a tensor, a tuple, or a dict of keyword arguments; guessed where the model says so
    only     a regular expression over site names (module paths)
    group    a torch.distributed process group that shares the work: each process converts some of the places
    options  of the one pass: convert(model, "moe", experts=8, top_k=2)

    `gatec.report(result)` tells what was put where, what was left and why, and how far the output moved.
    Raises GatecError if nothing could be put anywhere.
    """
    return convert_(copied(model), *passes, pass_=pass_, inputs=inputs, only=only, progress=progress, group=group,
                    **options)  # fmt: skip


def convert_(model: Model, *passes: Any, pass_: Any = None, inputs: Any = None, only: str | None = None,
             progress: Callable[[str], Any] | None = None, group: Any = None, **options: Any) -> Model:  # fmt: skip
    """`convert` in place. If anything fails the model is as it was, to the bit."""
    wanted = steps([*passes, *([pass_] if pass_ else []), *_keyword(options)], options)
    chosen = pattern(only)
    program = prepare(model, inputs)
    filled(model)
    with all_or_nothing() as undo:
        for gate, own in wanted:
            here = (lambda site: bool(chosen.search(site))) if chosen else None
            if group is not None and isinstance(gate, Gate):
                edits = dealt(gate, own, program, undo, group, only=here, tick=progress)
            else:
                edits = edited(gate, own, program, undo, only=here, tick=progress)
            remember(model, step(gate, own, edits), undo)
            note(gate.name, model, edits)
        _something(program, wanted)
        moved = distance(forward(model, program), program.calls[""][0].output)
        attach(model, Report(tuple(program.edits), moved, tuple(program.missed.items())), undo)
    return model


def edited(gate: Gate | Tool, own: dict[str, Any], program: Program, undo: list[Callable[[], Any]], *,
           structure: bool = False, **how: Any) -> list[Edit]:  # fmt: skip
    """The edits of one step of a pipeline."""
    if isinstance(gate, Tool):
        return gate.put(program, undo, **how)
    return put(gate, own, program, undo, structure=structure, **how)


def step(gate: Gate | Tool, own: dict[str, Any], edits: list[Edit]) -> dict[str, Any]:
    """One line of a recipe: the pass, its options as far as they are data, and the sites where it was put."""
    plain = {k: v for k, v in own.items() if isinstance(v, (*PLAIN, dict))}
    return {"pass": gate.name, "options": _data(plain), "sites": [e.site for e in edits if e.verdict == "put"]}


def _data(value: Any) -> Any:
    """What a recipe can hold of a value: None for a tensor, since what was made of it lies in the checkpoint."""
    if isinstance(value, dict):
        return {str(k): _data(v) for k, v in value.items()}
    return value if isinstance(value, PLAIN) else None


def load(folder: str | Path, model: Model, *, inputs: Any = None, gates: Iterable[Gate] = (),
         tensors: bool = True) -> Model:  # fmt: skip
    """The model that `gatec.save` wrote into `folder`, from a freshly built base model (which is not touched).

    The recipe is replayed without giving birth to anything, then the tensors are loaded. Names are looked up in the
    catalogue of passes, or in `gates`: a recipe holds no code. A base model on the meta device takes the saved tensors
    as its own; with `tensors=False` it stays there, to be sharded first and filled by torch.distributed.checkpoint.
    """
    model, own = copied(model), {g.name: g for g in gates}
    for line in read(folder):
        if "removed" in line:
            carried_out(model, Plan.of(line["removed"]), [])
            remember(model, line, [])
            continue
        if "channels" in line:
            model = gated_again(model, line, one_call(model, inputs))
            continue
        if "compact" in line:
            _compacted(model, line, folder, inputs)
            continue
        found = own.get(str(line.get("pass"))) or gate_named(str(line.get("pass")))
        sites = set(line.get("sites", ()))
        with all_or_nothing() as undo:
            options = dict(line.get("options", {}))
            edits = edited(found, options, prepare(model, inputs), undo, only=sites.__contains__, structure=True)
            missing = sites - {e.site for e in edits if e.verdict == "put"}
            if missing:
                raise GatecError(f"the sites of {found.name} in {type(model).__name__}", found=f"none at {sorted(missing)[0]}",
                                 where=str(folder), hint="load into a fresh model of the same configuration")  # fmt: skip
            remember(model, line, undo)
    return fill(model, folder) if tensors else model


def _compacted(model: nn.Module, line: dict[str, Any], folder: str | Path, inputs: Any) -> None:
    """Replay what compact did to a model."""
    if line.get("kind", HIDDEN) == HIDDEN:
        shrink(model, shapes(folder), line["compact"])
    elif line["kind"] == ROWS:
        narrowed(model, line["compact"], shapes(folder))
    else:
        replayed(model, line["kind"], line["compact"], lambda: prepare(model, inputs).calls)
    remember(model, line, [])


def why(model: nn.Module, *passes: Any, inputs: Any = None, **options: Any) -> list[Edit]:
    """What `convert` would do and why, place by place, near misses included; nothing is changed."""
    program = prepare(model, inputs)
    for gate, own in steps(passes, options):
        edited(gate, own, program, [], dry=True)
    return program.edits


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that gatec added, for an optimizer group of their own."""
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        unit = unit_of(module)
        for path in (p for r in (unit.edits if unit else ()) for p in r.added.values()):
            owner, _, name = path.rpartition(".")
            value = getattr(module.get_submodule(owner), name)
            for parameter in value.parameters() if isinstance(value, nn.Module) else [value]:
                found[id(parameter)] = parameter
    if has_gates(model):
        found |= {id(g.weight): g.weight for g in channel_gates(model).values()}
    return list(found.values())


def prepare(model: nn.Module, inputs: Any) -> Program:
    """The recorded program of a model that is fit to be rewritten."""
    if not isinstance(model, nn.Module):
        raise GatecError("a torch.nn.Module", found=type(model).__name__, hint="gatec.zoo.load builds models from text")
    together(model)
    finite(model, type(model).__name__)
    args, kwargs = one_call(model, inputs)
    try:
        with _without_data(model) as fake:
            return Program.of(model, *fake((args, kwargs)))
    except Exception as e:
        raise GatecError(f"example inputs that {type(model).__name__} takes", found=in_short(e),
                         hint="gatec.convert(model, ..., inputs=...) with what model(...) runs on") from e  # fmt: skip


@contextmanager
def _without_data(model: nn.Module) -> Iterator[Callable[[Any], Any]]:
    """For a model on the meta device: inputs as torch's own stand-ins, which libraries know not to look into."""
    if not any(p.is_meta for p in model.parameters()):
        yield lambda value: value
        return
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield lambda value: tree_map_only(Tensor, lambda t: mode.from_tensor(t.to("meta")), value)


@contextmanager
def all_or_nothing() -> Iterator[list[Callable[[], Any]]]:
    """A journal of undo steps; they run, newest first, if the body fails."""
    undo: list[Callable[[], Any]] = []
    try:
        yield undo
    except BaseException:
        back(undo)
        raise


def _keyword(options: dict[str, Any]) -> list[Any]:
    return [options.pop("pass")] if "pass" in options else []


def _something(program: Program, wanted: list[Step]) -> None:
    if any(e.verdict == "put" for e in program.edits):
        return
    names = ", ".join(g.name for g, _ in wanted)
    ours = added(program)
    reasons = [f"{e.site or '(model)'}: {e.why}" for e in program.edits] + [
        f"{p or '(model)'}: {w}" for p, w in program.missed.items() if p not in ours
    ]
    found = (
        "; ".join(reasons[:4]) + (f"; and {len(reasons) - 4} more" if len(reasons) > 4 else "")
        if reasons
        else "no such place"
    )
    raise GatecError(f"a place for {names} in {type(program.model).__name__}", found=found,
                     hint=f'gatec.why(model, "{names}") lists every place that was considered')  # fmt: skip
