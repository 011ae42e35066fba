"""The command line: a verb per function of the front door; tables on stdout, the rest on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import gatec
from gatec import bench as benchmarks
from gatec import demo as tour
from gatec import settings, zoo
from gatec.bench import coverage, papers, pruning
from gatec.bench.plot import plotted
from gatec.errors import GatecError
from gatec.screen import errors, say, table, working


class Verbs(TyperGroup):
    """A GatecError becomes its own four rows and exit code 1; GATEC_DEBUG=1 adds the traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GatecError as error:
            if settings.DEBUG:
                errors.print_exception()
            errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Verbs, help="A compiler for gates in PyTorch models.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

Model = Annotated[str, typer.Argument(help=zoo.FORMS)]
Passes = Annotated[str, typer.Argument(help='Pipeline text: "glu" or "moe(experts=8),fuse"')]
Before = Annotated[str, typer.Option("--passes", "-p", help="Pipeline text to convert with first")]
Folder = Annotated[Path | None, typer.Option("--output", "-o", help="A folder to write to")]
STDOUT = Path("-")
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:0")]


@app.command()
def gates() -> None:
    """List the gates that gatec knows: name, what it does, and how it starts."""
    table([gate.name, gate.summary, f"born {gate.born}"] for gate in gatec.gates().values())


@app.command()
def scan(
    model: Model,
    html: Annotated[Path | None, typer.Option(help="A page to write: the module tree with everything in it")] = None,
    json: Annotated[Path | None, typer.Option(help="A file to write the census to; - is standard output")] = None,
    device: Device = "cpu",
) -> None:
    """Show the gates a model has, the places where gates could go, and what could not be captured."""
    for file in filter(None, (html, json)):
        _writable(file)
    found = _find(model, device)
    with working("scanning"):
        census = gatec.scan(found.model, inputs=found.inputs)
    if STDOUT not in (html, json):
        say(str(census))
    if html is not None:
        _write(html, census.html())
    if json is not None:
        _write(json, census.json())


@app.command()
def why(model: Model, passes: Passes, device: Device = "cpu") -> None:
    """Show what the passes would do at every site, or why not; nothing is changed."""
    found = _find(model, device)
    with working("looking"):
        edits = gatec.why(found.model, passes, inputs=found.inputs)
    for edit in edits:
        say(str(edit))


@app.command()
def convert(
    model: Model,
    passes: Passes,
    output: Folder = None,
    html: Annotated[Path | None, typer.Option(help="A page to write: what each gate costs, and every decision")] = None,
    json: Annotated[Path | None, typer.Option(help="A file to write the report to; - is standard output")] = None,
    measure: Annotated[
        bool, typer.Option(help="Run the model too: times, and how often each expert is chosen")
    ] = False,
    device: Device = "cpu",
) -> None:
    """Put gates into a model, report every decision, and save it as a recipe and weights."""
    for file in filter(None, (html, json)):
        _writable(file)
    found = _find(model, device)
    with working("converting"):
        converted = gatec.convert(found.model, passes, inputs=found.inputs)
        report = gatec.measure(converted, found.inputs) if measure else gatec.report(converted)
    if STDOUT not in (html, json):
        say(str(report))
    if html is not None:
        _write(html, report.html())
    if json is not None:
        _write(json, report.json())
    if output is not None:
        with working("saving"):
            gatec.save(converted, output)
        wrote(output)


@app.command()
def fuse(model: Model, passes: Before = "", output: Folder = None, device: Device = "cpu") -> None:
    """Fuse gated regions into generated kernels, and write their sources to a folder."""
    found = _find(model, device)
    with working("fusing"):
        fused = gatec.fuse(_converted(found, passes), inputs=found.inputs)
    say(str(gatec.report(fused)))
    kernels = gatec.kernels_of(fused)
    table([name, f"{len(kernel.source.splitlines())} lines"] for name, kernel in kernels.items())
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, kernel in kernels.items():
            (output / f"{name}.py").write_text(kernel.source)
        wrote(output)


@app.command()
def eject(model: Model, output: Annotated[Path, typer.Option("--output", "-o", help="A folder to write to")],
          device: Device = "cpu",
          tune: Annotated[float | None, typer.Option(help="Seconds in which to measure its kernels on a CUDA device")] = None,
          ) -> None:  # fmt: skip
    """Write a package with the kernels and forwards of a model, that runs without gatec."""
    found = _find(model, device)
    with working("ejecting"):
        folder = gatec.eject(found.model, output, inputs=found.inputs, tune=tune)
    wrote(folder)


@app.command()
def tune(
    model: Model,
    passes: Before = "",
    budget: Annotated[float, typer.Option(help="Seconds that measuring may take")] = 60.0,
    json: Annotated[Path | None, typer.Option(help="A file to write the choices to; - is standard output")] = None,
    inductor: Annotated[bool, typer.Option(help="Let torch.compile of a region be one of its ways")] = False,
    device: Device = "cuda",
) -> None:
    """Verify and measure the kernels of a model's regions on a device, and remember which to run."""
    if json is not None:
        _writable(json)
    found = _find(model, device)
    with working("tuning"):
        tuning = gatec.tune(_converted(found, passes), inputs=found.inputs, budget=budget, inductor=inductor)
    if json != STDOUT:
        say(str(tuning))
    if json is not None:
        _write(json, tuning.json() + "\n")


@app.command()
def export(
    model: Model,
    file: Annotated[Path, typer.Argument(help="FILE.onnx")],
    passes: Before = "",
    skip: Annotated[
        bool, typer.Option("--skip", help="leave out at run time what a decision on data makes unused")
    ] = False,
    experts: Annotated[
        str, typer.Option(help="standard operators, or ort: onnxruntime's own for mixtures")
    ] = "standard",
    device: Device = "cpu",
) -> None:
    """Export to ONNX, with dynamic batch and length, and compare with onnxruntime."""
    if file.suffix != ".onnx":
        raise GatecError("a file to export to", found=repr(str(file)), hint=f"{file.stem}.onnx")
    found = _find(model, device)
    with working("exporting"):
        exported = gatec.export(_converted(found, passes), file, inputs=found.inputs, skip=skip, experts=experts)
    say(str(exported))


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help=", ".join(benchmarks.BENCHMARKS))],
    output: Folder = None,
    only: Annotated[
        str, typer.Option(help="coverage, prune: a regular expression over suite:name; papers, kernels: over names")
    ] = "",
    peers: Annotated[bool, typer.Option(help="coverage, prune: ask the other tools too")] = True,
    jobs: Annotated[int, typer.Option(help="coverage, prune: processes at a time")] = 2,
    file: Annotated[
        Path | None,
        typer.Option("--json", help="coverage: a FILE for everything; prune: a FILE that a later run goes on from"),
    ] = None,
    folder: Annotated[Path, typer.Option(help="papers: blocks of your own")] = papers.FOLDER,
    graphs: Annotated[bool, typer.Option(help="kernels: replay CUDA graphs, without the host's launches")] = False,
    compiles: Annotated[bool, typer.Option(help="kernels: beside torch.compile, which takes minutes")] = True,
    seeds: Annotated[int, typer.Option(help="moe, prune: models that are trained of each kind")] = 1,
    plot: Annotated[Path | None, typer.Option(help="kernels: a FILE for a picture of the ratios")] = None,
) -> None:
    """Measure beside a peer in one run; -o keeps the rows as JSON with device, versions and commit."""
    if name == "coverage":
        _coverage(only, peers, jobs, file, output)
        return
    if name == "papers":
        _papers(only, folder, output)
        return
    if name == "prune":
        _pruning(only, peers, jobs, seeds, file, output)
        return
    options = {"only": only, "graphs": graphs, "compiles": compiles} if name == "kernels" else {}
    if name in ("moe", "moe-quality"):
        options = {"only": only, "seeds": seeds}
    with working(f"measuring {name}"):
        rows = benchmarks.run(name, **options)
    _shown(rows)
    if plot and name == "kernels":
        wrote(plotted(rows, plot))
    if output:
        wrote(benchmarks.keep(name, rows, output))


@app.command()
def demo() -> None:
    """From a Llama to a converted, fused and exported one, in under two minutes on a CPU."""
    tour.show()


def _coverage(only: str, peers: bool, jobs: int, file: Path | None, output: Path | None) -> None:
    """Three tables, then every result that is not the module's own; exit code 1 if there is one."""
    rows = coverage.coverage(only, peers, jobs, progress=_told)
    for found in coverage.summary(rows):
        table(found)
        say("")
    wrong = list(coverage.wrongs(rows))
    for line in wrong:
        say(line)
    if file is not None:
        file.write_text(json.dumps(rows, indent=1) + "\n")
    if output:
        wrote(benchmarks.keep("coverage", coverage.compact(rows), output))
    if wrong:
        raise typer.Exit(1)


def _pruning(only: str, peers: bool, jobs: int, seeds: int, file: Path | None, output: Path | None) -> None:
    """The sweep by suite, every model that is not exact, and the rows of digits and speed; exit code 1 if one is not exact."""
    rows = pruning.pruning(only, peers, jobs, seeds, file=file, progress=_said)
    wrong = list(pruning.wrongs(rows))
    if any("suite" in row for row in rows):
        table(pruning.summary(rows))
    for line in wrong:
        say(line)
    for part in ("digits", "speed"):
        if found := [row for row in rows if row.get("part") == part]:
            say("")
            _shown(found)
    if output:
        wrote(benchmarks.keep("prune", rows, output))
    if wrong:
        raise typer.Exit(1)


def _papers(only: str, folder: Path, output: Path | None) -> None:
    """A row for each block, then how many got how far."""
    rows = papers.literature(only, folder, progress=lambda name: errors.print(name, markup=False, highlight=False))
    _shown([{k: v for k, v in row.items() if k != "about"} for row in rows])
    for line in papers.summary(rows):
        say(line)
    if output:
        wrote(benchmarks.keep("papers", rows, output))


def _shown(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(k for row in rows for k in row))
    table([columns, *([_cell(row.get(c, "")) for c in columns] for row in rows)])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:.1e}" if isinstance(value, float) and 0 < value < 1e-3 else str(value)


def _told(row: dict[str, Any], who: str) -> None:
    """A line per answer: the sweep takes as long as a meal."""
    status = (row if who == coverage.OURS else row["peers"][who])["status"]
    errors.print(f"{row['model']}  {who}  {status}", markup=False, highlight=False, soft_wrap=True)


def _said(row: dict[str, Any], who: str) -> None:
    said = row if who == pruning.OURS else row["peer"]
    errors.print(f"{row['model']}  {who}  {said['status']}", markup=False, highlight=False, soft_wrap=True)


def _find(model: str, device: str) -> zoo.Found:
    with working(f"loading {model}"):
        return zoo.find(model, device)


def _converted(found: zoo.Found, passes: str) -> Any:
    return gatec.convert(found.model, passes, inputs=found.inputs) if passes else found.model


def _writable(file: Path) -> None:
    """Say so before minutes of work, not after them."""
    if file.is_dir():
        raise GatecError("a file to write to", found=f"{str(file)!r}, which is a folder")
    if not file.absolute().parent.is_dir():
        raise GatecError("a file to write to", found=f"{str(file)!r}, and no such folder")


def _write(file: Path, text: str) -> None:
    if file == STDOUT:
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GatecError("a file to write to", found=f"{str(file)!r}: {error.strerror}") from error
    errors.print(f"wrote  {file}  {len(text) / 1e6:.1f} MB", markup=False, highlight=False, soft_wrap=True)


def wrote(folder: Path) -> None:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(f"wrote  {folder}  {size / 1e6:.1f} MB")


def main() -> None:
    sys.exit(app())


if __name__ == "__main__":
    main()
