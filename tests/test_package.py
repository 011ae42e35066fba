"""The wheel holds what the tree holds, under gatec.* and nowhere else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KEEP = {".py", ".typed", ".json", ".html", ".css", ".js"}


def run(*command, cwd):
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by setuptools itself: no isolation, hence no download."""
    folder = tmp_path_factory.mktemp("wheel")
    build = f"""
import sys
from setuptools import build_meta
print(build_meta.build_wheel({str(folder)!r}, {{"--build-option": ["-q"]}}))
"""
    # setuptools writes build/ and an egg-info beside pyproject.toml, so it gets a copy of the tree.
    copy = folder / "tree"
    files = [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    for file in [*files, *in_tree()]:
        target = copy / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    run("-c", build, cwd=copy)
    return next(folder.glob("*.whl"))


def in_tree():
    folders = [ROOT / name for name in ("gatec", "passes", "kernels")]
    files = (file for folder in folders for file in folder.rglob("*") if file.suffix in KEEP)
    return [file for file in files if "__pycache__" not in file.parts]


def inside(file):
    path = file.relative_to(ROOT)
    return str(path if path.parts[0] == "gatec" else Path("gatec") / path)


def test_the_wheel_holds_the_tree(wheel):
    names = [n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n]
    assert sorted(names) == sorted(inside(file) for file in in_tree())


def test_the_wheel_knows_its_command_and_license(wheel):
    archive = zipfile.ZipFile(wheel)
    text = {n.rpartition("/")[2]: archive.read(n).decode() for n in archive.namelist()}
    assert "gatec = gatec.cli:main" in text["entry_points.txt"]
    assert "Apache License" in text["LICENSE"]
    assert "Requires-Dist: torch>=2.11" in text["METADATA"]


@pytest.mark.parametrize("name", ["kernels", "passes"])
def test_the_folders_are_no_packages_of_their_own(name, tmp_path):
    """transformers imports a package named kernels; ours must never be it."""
    code = f"import importlib.util as u; spec = u.find_spec({name!r}); print(spec and spec.origin)"
    found = run("-c", code, cwd=tmp_path).strip()
    assert not found.startswith(str(ROOT))
    assert not (ROOT / name / "__init__.py").exists()


def test_the_wheel_imports_far_from_the_tree(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import gatec, gatec.kernels, gatec.passes\n"
        "print(gatec.__file__, *gatec.kernels.__path__, *gatec.passes.__path__)"
    )
    paths = run("-c", code, cwd=tmp_path).split()
    assert all(path.startswith(str(site)) for path in paths), paths
