"""Where a class is written."""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType


@lru_cache(4096)  # classes may be made at run time
def line_of(kind: type) -> str:
    """file:line of the class statement: the nearest one above the first of its methods. Empty where there is no file."""
    code = min(_methods(kind), key=lambda code: code.co_firstlineno, default=None)
    if code is not None:
        number = _statement(kind, code.co_filename, code.co_firstlineno)
        return f"{_short(code.co_filename)}:{number or code.co_firstlineno}"
    try:
        file, (_, start) = inspect.getfile(kind), inspect.findsource(kind)
    except (OSError, TypeError):
        return ""
    return f"{_short(file)}:{start + 1}"


def _methods(kind: type) -> Iterator[CodeType]:
    for value in vars(kind).values():
        function = inspect.unwrap(value) if callable(value) else value
        if inspect.isfunction(function) and function.__qualname__.startswith(f"{kind.__qualname__}."):
            code = function.__code__
            if not code.co_filename.startswith("<"):  # written by exec, as dataclasses do
                yield code


def _statement(kind: type, file: str, below: int) -> int:
    lines, statement = linecache.getlines(file), re.compile(rf"\s*class\s+{re.escape(kind.__name__)}\b")
    return next((n for n in range(min(below, len(lines)), 0, -1) if statement.match(lines[n - 1])), 0)


def _short(file: str) -> str:
    return file.rpartition("site-packages/")[2]
