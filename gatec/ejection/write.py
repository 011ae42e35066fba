"""The files of an ejected package on disk."""

from __future__ import annotations

import inspect
import json
import pprint
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gatec import autograd
from gatec.capture import around, structure
from gatec.dispatch import forms, identity
from gatec.ejection import choices, runtime, templates
from gatec.ejection.source import carried
from gatec.errors import GatecError

# Files of gatec that stand by themselves, under their names in a package.
SHIPPED = {"structure.py": structure, "around.py": around, "autograd.py": autograd, "forms.py": forms,
           "identity.py": identity, "choices.py": choices, "runtime.py": runtime}  # fmt: skip
RELATIVE = {module.__name__: f".{file.removesuffix('.py')}" for file, module in SHIPPED.items()}
ADDED = """
`added.pt` holds what gatec put into the model, with the values that it had; `apply` puts it into a model that has none of it.
Weights of the model that the conversion moved are not here: load the converted model's state_dict behind `apply`.
"""


def write(package: Any, folder: Path) -> None:
    """Every file; a folder that holds anything else than an earlier package is left alone."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "runtime.py").is_file()):
        raise GatecError("an empty folder, or one that an earlier eject wrote", found=str(folder))
    (folder / "kernels").mkdir(parents=True, exist_ok=True)
    for old in (folder / "kernels").glob("*.py"):
        old.unlink()
    for name, text in _files(package, folder.name).items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "added.pt").unlink(missing_ok=True)
    if package.tensors:
        torch.save(package.tensors, folder / "added.pt")


def _files(package: Any, name: str) -> dict[str, str]:
    known = {"package": name, "title": f"The gated regions of {package.model}", "version": _version(),
             "model": package.model, "torch": torch.__version__}  # fmt: skip
    functions = sorted(package.functions)
    return {
        "__init__.py": templates.INIT.format(
            **known, functions=", ".join(functions), quoted=", ".join(f'"{f}"' for f in functions)
        ),
        "functions.py": _functions(package),
        "forwards.py": _forwards(package),
        "carried.py": carried(),
        "choices.json": json.dumps({"entries": package.choices}, indent=1, sort_keys=True) + "\n",
        **{file: _standing(inspect.getsource(module)) for file, module in SHIPPED.items()},
        "test_ejected.py": templates.TEST.replace("{examples}", _examples(package)),
        "README.md": templates.README.format(
            **known, sites=_sites(package), left=_left(package), added=ADDED if package.added else ""
        ),
        **{f"kernels/{n}.py": f.made.kernel.source for n, f in package.functions.items()},
        "kernels/__init__.py": '"""The generated kernels, each of which runs by itself."""\n',
    }


def _version() -> str:
    try:
        return version("gatec")
    except PackageNotFoundError:
        return "from a checkout"


def _standing(text: str) -> str:
    for inside, here in RELATIVE.items():
        text = text.replace(f"from {inside} import", f"from {here} import")
    return text


def _functions(package: Any) -> str:
    parts = []
    for name, function in package.functions.items():
        module = function.made.kernel.load()
        columns = getattr(module, "COLUMNS", None)
        parts.append(
            templates.FUNCTION.format(
                name=name,
                title=_title(name),
                eager=function.eager.body,
                operands=", ".join(_parameters(function.eager.body)),
                dtypes=", ".join(map(str, module.DTYPES)),
                columns=None if columns is None else columns.value,
            )
        )
    imports = _lines(i for f in package.functions.values() for i in f.eager.imports if i != "import torch")
    table = "".join(f'    "{name}": {_title(name)},\n' for name in package.functions)
    head = templates.FUNCTIONS.format(imports=f"{imports}\n" if imports else "")
    return head + "\n".join(parts) + f"\n\nKERNELS = {{\n{table}}}\n"


def _title(name: str) -> str:
    return "".join(word.title() for word in name.split("_"))


def _parameters(body: str) -> list[str]:
    inside = re.match(r"def \w+\((.*?)\):", body)
    assert inside
    return [p.strip() for p in inside[1].split(",") if p.strip() not in ("", "self")]


def _forwards(package: Any) -> str:
    rows = "".join(f'    "{w.name}": Forward(\n{_told(w)}    ),\n' for w in package.ways)
    sites = "".join(f"    {path!r}: {_site(site)},\n" for path, site in package.sites.items())
    imports = _lines(["from .runtime import Forward, Site", *(i for w in package.ways for i in w.text.imports)])
    bodies = "\n\n".join(w.text.body for w in package.ways)
    return templates.FORWARDS.format(
        imports=imports, bodies=bodies, rows=rows, sites=sites, added=pprint.pformat(package.added, width=100)
    )


def _site(site: Any) -> str:
    changed = ", changed=True" if site.changed else ""
    return f"Site({site.kind!r}, {tuple(site.inside)!r}, {tuple(site.around)!r}{changed})"


def _told(way: Any) -> str:
    fields = {n: pprint.pformat(getattr(way, n), width=100) for n in ("form", "state", "reads", "asked", "device")}
    lines = [f"run={way.name},", *(f"{n}={text},".replace("\n", "\n" + " " * 8) for n, text in fields.items())]
    return "".join(f"        {line}\n" for line in lines)


def _lines(imports: Iterable[str]) -> str:
    """Imports first, then what is bound to a name."""
    found = dict.fromkeys(imports)
    return "\n".join(sorted(found, key=lambda line: (not line.startswith(("import", "from")), line)))


def _examples(package: Any) -> str:
    found = {n: [(tuple(x.shape), x.dtype) for x in f.examples] for n, f in package.functions.items()}
    return pprint.pformat(found, width=110)


def _sites(package: Any) -> str:
    return "\n".join(f"- `{path or '(the model)'}`: {site.kind}, {', '.join((*site.inside, *site.around))}"
                     for path, site in package.sites.items())  # fmt: skip


def _left(package: Any) -> str:
    if not package.left:
        return ""
    rows = "\n".join(f"- `{path or '(the model)'}`: {why}" for path, why in package.left.items())
    return f"Left as they are:\n\n{rows}\n"
