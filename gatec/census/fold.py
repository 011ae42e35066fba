"""Paths that differ in their indices only, written as one: layers.0..31.mlp."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

Row = tuple[str, ...]
Shape = tuple[str | None, ...]  # the parts of a path, None for an index
HERE = "\0"  # stands for the path itself in the text that a group shares


def rows(found: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, int, Row]]:
    """(path, cells) with equal cells as one row: the paths folded, and how many there are."""
    groups: dict[Row, list[str]] = {}
    for path, cells in found:
        key = tuple(cell.replace(path, HERE) for cell in cells) if is_name(path) else cells
        groups.setdefault(key, []).append(path)
    for key, paths in groups.items():
        for text, count in folded(paths):
            yield text, count, tuple(cell.replace(HERE, text) for cell in key)


def is_name(path: str) -> bool:
    """Whether a path can be told from a number that a sentence happens to contain."""
    return any(letter.isalpha() for letter in path)


def folded(paths: Iterable[str]) -> list[tuple[str, int]]:
    """Each folded path with the number of paths that it stands for; together exactly `paths`."""
    shapes: dict[Shape, list[tuple[int, ...]]] = {}
    for path in paths:
        parts = path.split(".")
        shape = tuple(None if _is_index(p) else p for p in parts)
        shapes.setdefault(shape, []).append(tuple(int(p) for p in parts if _is_index(p)))
    return [_written(shape, box, numbers) for shape, numbers in shapes.items() for box in _boxes(sorted(set(numbers)))]


def span(numbers: Sequence[int]) -> str:
    """Ascending numbers as runs: 0..31, 0..30:2 for every second one, 1,5."""
    texts, at = [], 0
    while at < len(numbers):
        end = _run(numbers, at)
        step = numbers[at + 1] - numbers[at] if end > at + 1 else 0
        if end - at < (3 if step == 1 else 4):
            end = at + 1
            texts.append(f"{numbers[at]}")
        else:
            texts.append(f"{numbers[at]}..{numbers[end - 1]}" + (f":{step}" if step > 1 else ""))
        at = end
    return ",".join(texts)


def _run(numbers: Sequence[int], at: int) -> int:
    """One behind the last number that goes on with the first step."""
    end = at + 1
    while end < len(numbers) and numbers[end] - numbers[end - 1] == numbers[at + 1] - numbers[at]:
        end += 1
    return end


def _is_index(part: str) -> bool:
    return part.isdecimal() and part.isascii() and str(int(part)) == part


def _boxes(numbers: list[tuple[int, ...]]) -> Iterator[list[list[int]]]:
    """Boxes (one list of numbers per position) that cover the tuples, each once."""
    if not numbers[0]:
        yield []
        return
    rest: dict[int, list[tuple[int, ...]]] = {}
    for first, *others in numbers:
        rest.setdefault(first, []).append(tuple(others))
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first, tails in rest.items():
        alike.setdefault(tuple(tails), []).append(first)
    for shared, firsts in alike.items():
        for box in _boxes(list(shared)):
            yield [firsts, *box]


def _written(shape: Shape, box: list[list[int]], numbers: list[tuple[int, ...]]) -> tuple[str, int]:
    spans, inside = iter(map(span, box)), [set(firsts) for firsts in box]
    text = ".".join(next(spans) if part is None else part for part in shape)
    return text, sum(all(n in allowed for n, allowed in zip(found, inside, strict=True)) for found in numbers)
