"""The table of choices: one small JSON file per key, written atomically; what cannot be read is as if it were not there."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: two processes may then measure at once, and each writes an answer of its own
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
POLL = 0.05  # seconds between two looks at a lock
SHIPPED = Path(__file__).parent.parent / "tables"


@dataclass(frozen=True)
class Key:
    """`fields` are all that an answer depends on: source, operands, device and every version."""

    fields: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Record:
    """`way` is the name of the fastest one, or "" for what the graph had; `why` is a line for people.

    `times` has each way's and eager's median milliseconds, `failed` the ways which were wrong or did not run.
    """

    way: str
    why: str = ""
    times: Mapping[str, list[float]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


class Table:
    """`find` looks into memory, then into the shipped tables, then into the folder; `keep` never raises."""

    def __init__(self, folder: Path, shipped: Path = SHIPPED) -> None:
        self.folder, self._shipped = folder, shipped
        self._memory: dict[str, Record] = {}
        self._known: dict[str, Any] | None = None
        self._lock = threading.Lock()

    def find(self, key: Key) -> Record | None:
        digest = key.digest
        if digest not in self._memory:
            found = _record(self._ours().get(digest), key) or _record(_read(self._file(digest)), key)
            if found is None:
                return None
            self._memory[digest] = found
        return self._memory[digest]

    def keep(self, key: Key, record: Record) -> None:
        """In memory at once, and on disk if the disk lets us."""
        self._memory[key.digest] = record
        with suppress(OSError):
            write(self._file(key.digest), entry(key, record))

    def about(self, region: str) -> Iterator[tuple[Key, Record]]:
        """Every answer that is known for a region."""
        files = (_read(file) for file in sorted(self.folder.glob("*/*.json")))
        for found in (*self._ours().values(), *files):
            key = found.get("key") if isinstance(found, dict) else None
            if isinstance(key, dict) and key.get("region") == region:
                record = _record(found, Key(key))
                if record is not None:
                    yield Key(key), record

    @contextmanager
    def alone(self, seconds: float = 0.0) -> Iterator[bool]:
        """Whether no other process is measuring, for so long; one that is killed gives way at once."""
        until = time.monotonic() + seconds
        with self._opened() as file:
            while not (alone := _locked(file)) and time.monotonic() < until:
                time.sleep(POLL)
            yield alone

    @contextmanager
    def _opened(self) -> Iterator[IO[str] | None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "measuring.lock").open("w")
        except OSError:  # a read-only home: nobody else can write there either
            yield None
            return
        with file:
            yield file

    def _file(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.json"

    def _ours(self) -> dict[str, Any]:
        """The entries of every shipped table, read once."""
        with self._lock:
            if self._known is None:
                self._known = {}
                for file in sorted(self._shipped.glob("*.json")):
                    found = _read(file)
                    entries = found.get("entries") if isinstance(found, dict) else None
                    self._known.update(entries if isinstance(entries, dict) else {})
            return self._known


def entry(key: Key, record: Record) -> dict[str, Any]:
    return {"format": FORMAT, "key": dict(key.fields), **asdict(record)}


def write(file: Path, value: Any) -> None:
    """A reader sees the old text or the new, never half of one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as f:
            json.dump(value, f, indent=1, sort_keys=True)
        Path(name).replace(file)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _record(found: Any, key: Key) -> Record | None:
    """What stands in an entry, if it is one of ours and for this very key."""
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("key") != dict(key.fields):
        return None
    way, why, times, failed = (found.get(k) for k in ("way", "why", "times", "failed"))
    whole = isinstance(way, str) and isinstance(why, str) and isinstance(times, dict) and isinstance(failed, dict)
    return Record(way, why, times, failed) if whole else None  # type: ignore[arg-type]


def _locked(file: IO[str] | None) -> bool:
    if file is None or fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
