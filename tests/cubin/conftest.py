"""Binaries are made in a process of its own, so this tier may share one with any other."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gatec.aot import surroundings

sys.path.insert(0, str(Path(__file__).parents[1]))


class Compiler:
    """One process for all tests of a run: starting torch and triton costs more than compiling a kernel."""

    def __init__(self, errors: Path) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.errors = errors

    def __call__(
        self,
        file: Path,
        target: str,
        shapes: Sequence[str],
        form: str = "as_it_is",
        types: Sequence[str] = (),
        **options,
    ) -> list[dict]:
        """The binaries of one generated module for operands of these shapes."""
        job = {"file": str(file), "target": target, "shapes": shapes, "form": form, "types": types, "options": options}
        if self.process is None:
            self.process = self.started()
        print(json.dumps(job), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        found = json.loads(line) if line else self.stop()
        assert isinstance(found, list), f"{target} {found}"
        return found

    def started(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(__file__).with_name("compiling.py"))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self.errors.open("w") as errors:
            return subprocess.Popen(command, env=surroundings(), text=True, stderr=errors, **pipes)

    def stop(self) -> str:
        """End the process, if there is one; what it said on its standard error."""
        if self.process is None:
            return ""
        self.process.communicate()
        self.process = None
        return self.errors.read_text()


@pytest.fixture(scope="session")
def binaries_of(tmp_path_factory) -> Iterator[Compiler]:
    compiler = Compiler(tmp_path_factory.mktemp("compiler") / "errors")
    yield compiler
    compiler.stop()
