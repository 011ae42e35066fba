"""Dispatch without a device: the policy, the table and the other process, and whatever can go wrong with each."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from functools import partial

import pytest
import torch
from devices import Device

from gatec.dispatch import choose, measure, table
from gatec.dispatch.choose import Budget, Chooser, Side
from gatec.dispatch.cuda import in_thread
from gatec.dispatch.forms import Form, described, fitting, ragged
from gatec.dispatch.measure import fastest, race
from gatec.dispatch.table import Key, Record, Table
from gatec.dispatch.verify import Trial, Wrong, unlike, verified
from gatec.dispatch.worker import START, Unanswered, Worker

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CPU = torch.device("cpu")
X = torch.randn(48, 16)

# A process without the front door, which takes seconds to import: for tests of what happens between processes.
BARE = f"import sys, types; gatec = types.ModuleType('gatec'); gatec.__path__ = [{ROOT + '/gatec'!r}]; "
BARE += "sys.modules['gatec'] = gatec; "
ALONE = f"import sys; sys.path.insert(0, {ROOT + '/gatec/dispatch'!r}); from table import Key, Record, Table"

# -- ways, for this process and another --------------------------------------------------------------------------------


def eager(x, y):
    return torch.sigmoid(x) * y


def right(x, y):
    return (torch.sigmoid(x.float()) * y.float()).to(x.dtype)


def wrong(x, y):
    return torch.sigmoid(x) * y * 1.001


def wrong_on_the_edge(x, y):
    out = eager(x, y)
    out[len(out) // 16 * 16 :] = 0
    return out


def nan(x, y):
    return eager(x, y) / (x.abs() < 10)


def raises(x, y):
    raise RuntimeError("out of resource: shared memory\nand more")


def refuses(x, y):
    raise TypeError("this kernel was generated for float32")


def chatters(x, y):
    os.write(1, b"a kernel's own words on standard output" * 100)
    return right(x, y)


def crashes(x, y):
    os.abort()


def exits(x, y):
    os._exit(3)


def hangs(x, y):
    while True:
        time.sleep(0.01)


def has_no_disk(x, y):
    raise OSError(errno.ENOSPC, "No space left on device")


def killed(x, y):
    os.kill(os.getpid(), signal.SIGKILL)


def trial(way):
    return Trial(way, eager, eager, tuple(Form.of(x) for x in (X, X)), "cpu")


@pytest.fixture(scope="module")
def worker():
    """One for all: what ends it is followed by what a new one must answer."""
    before = list(sys.path)
    sys.path.insert(0, os.path.dirname(__file__))
    worker = Worker(2.0, START.replace("from gatec", BARE + "from gatec", 1))
    yield worker
    worker.stop()
    sys.path[:] = before


# -- the other process --------------------------------------------------------------------------------------------------

ANSWERS = {
    right: "",
    chatters: "",
    wrong: "result 0 is off by",
    nan: "result 0 is not finite where eager's is",
    raises: "RuntimeError: out of resource: shared memory",
    refuses: "TypeError: this kernel was generated for float32",
    crashes: "it ended its process (SIGABRT)",
    exits: "it ended its process (exit code 3)",
    hangs: "it had not ended after 2 seconds",
}


@pytest.mark.parametrize("way", ANSWERS)
def test_another_process_answers_whatever_happens_to_it(worker, way):
    answer = worker.ask(trial(way))
    assert answer.startswith(ANSWERS[way]) and bool(answer) == bool(ANSWERS[way])


def test_a_worker_killed_from_outside_says_nothing_about_the_way(worker):
    with pytest.raises(Unanswered, match="the process was killed from outside"):
        worker.ask(trial(killed))
    assert worker.ask(trial(right)) == ""


def test_a_full_disk_in_the_other_process_says_nothing_about_the_way(worker):
    with pytest.raises(Unanswered, match="No space left on device"):
        worker.ask(trial(has_no_disk))


def test_what_cannot_be_sent_is_not_run(worker):
    with pytest.raises(Unanswered, match="it cannot be sent to another process"):
        worker.ask(trial(lambda x, y: eager(x, y)))


def test_what_cannot_be_read_there_is_not_run(worker, monkeypatch):
    module = types.ModuleType("only_here")
    monkeypatch.setitem(sys.modules, "only_here", module)
    monkeypatch.setattr(right, "__module__", "only_here")
    module.right = right
    with pytest.raises(Unanswered, match="it cannot be read in another process: ModuleNotFoundError"):
        worker.ask(trial(right))


def test_eager_that_refuses_every_stand_in_says_nothing_about_the_way(worker):
    with pytest.raises(Unanswered, match="eager does not run on stand-ins"):
        worker.ask(Trial(right, raises, raises, (Form.of(X), Form.of(X)), "cpu"))


def test_a_worker_that_does_not_start_is_no_answer_and_not_started_for_ever():
    worker = Worker(start="import sys; sys.exit(1)")
    for why in ["it does not start"] * 3 + ["it did not start before"]:
        with pytest.raises(Unanswered, match=f"no process to verify in: {why}"):
            worker.ask(trial(right))


def test_a_worker_that_stops_in_the_middle_of_an_answer():
    start = "import os, sys; os.write(1, (15).to_bytes(8, 'little') + b'{\"ready\": true}' + (99).to_bytes(8, 'little') + b'{')"
    worker = Worker(longest=1.0, start=start + "; sys.stdin.buffer.read(1)")
    assert worker.ask(trial(right)) == "it ended its process (exit code 0)"


def test_a_worker_ends_with_the_process_that_asked():
    code = BARE + "import time; from gatec.dispatch.worker import Worker\n"
    code += f"w = Worker(start={START.replace('from gatec', BARE + 'from gatec', 1)!r})\n"
    code += "print(w._running().pid, flush=True); time.sleep(60)"
    asking = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid = int(asking.stdout.readline())
    asking.kill()
    asking.wait()
    asking.stdout.close()
    until = time.monotonic() + 20
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


# -- right or wrong -----------------------------------------------------------------------------------------------------


def test_a_ragged_shape_finds_what_a_round_one_hides():
    assert verified(trial(right)) is None
    with pytest.raises(Wrong, match=r"result 0 is off by .*, operands \(47, 16\), \(47, 16\)"):
        verified(trial(wrong_on_the_edge))


def test_the_law_is_one_and_a_half_of_eagers_error():
    truth = torch.full((8,), 100.0, dtype=torch.float64)
    theirs = (truth + 1).float()
    assert unlike((truth + 1.4).float(), theirs, truth) == ""
    assert unlike((truth + 1.6).float(), theirs, truth) == "is off by 1.6e+00, eager by 1.0e+00"
    assert "instead of" in unlike(theirs.half(), theirs, truth)
    assert "instead of" in unlike(theirs[1:], theirs, truth)


@pytest.mark.parametrize("dtype, roundings", [(torch.float32, 4), (torch.bfloat16, 1), (torch.float16, 1)])
def test_where_eager_is_exact_a_way_may_round(dtype, roundings):
    truth = torch.full((8,), 1.0, dtype=torch.float64)
    exact, eps = truth.to(dtype), torch.finfo(dtype).eps
    assert unlike(exact + roundings * eps, exact, truth) == ""
    assert "is off by" in unlike(exact + (roundings + 1) * eps, exact, truth)


def test_overflow_counts_only_where_eager_does_not():
    truth = torch.tensor([1e9, 1.0], dtype=torch.float64)
    inf = torch.tensor([float("inf"), 1.0], dtype=torch.float16)
    assert unlike(torch.tensor([float("nan"), 1.0], dtype=torch.float16), inf, truth) == ""
    assert unlike(inf.flip(0), inf, truth) == "is not finite where eager's is"
    assert unlike(torch.tensor([3]), torch.tensor([4]), torch.tensor([4])) == "differs"


# -- forms --------------------------------------------------------------------------------------------------------------

GRADIENT = torch.Generator()


@pytest.mark.parametrize("x", [
    X, X.T, X[:, ::2], X[:, :8], X[None].expand(3, 48, 16), X[1:, 1:], torch.randn(()), torch.randn(0, 4),
    torch.randint(3, 9, (5, 7)), torch.tensor([0, 2, 2, 9]), torch.rand(4, 4) > 0.5, X.bfloat16(), X.view(-1)[1:17],
], ids=lambda x: f"{x.dtype}{tuple(x.shape)}{x.stride()}")  # fmt: skip
def test_a_stand_in_has_the_form_of_its_operand(x):
    form = Form.of(x)
    made = form.make(CPU, GRADIENT)
    assert Form.of(made).layout == form.layout
    assert (made.shape, made.stride(), made.dtype) == (x.shape, x.stride(), x.dtype)
    if not x.is_floating_point() and x.numel():
        assert int(made.min()) >= int(x.min()) and int(made.max()) <= int(x.max())


def test_integers_that_rise_still_rise_and_end_where_they_ended():
    made = Form.of(torch.tensor([0, 2, 2, 9])).make(CPU, GRADIENT)
    assert bool((made[1:] >= made[:-1]).all()) and made[-1] == 9


@pytest.mark.parametrize("x", [torch.randn(6, 8, 4), torch.randn(8, 6, 4).mT, torch.randn(6, 8, 8)[..., :4],
                               torch.randn(8, 4).expand(6, 8, 4)])  # fmt: skip
def test_other_rows_keep_the_layout(x):
    form = Form.of(x).resized(8, 5)
    wanted = tuple(5 if n == 8 and d < x.ndim - 1 else n for d, n in enumerate(x.shape))
    assert form.shape == wanted and form.make(CPU, GRADIENT).stride() == form.stride
    dense = [s for s in form.stride if s]
    assert len(set(dense)) == len(dense)


def test_ragged_forms_have_a_prime_number_of_rows_and_share_it():
    forms = [Form.of(torch.empty(2, 100, 8)), Form.of(torch.empty(8)), Form.of(torch.empty(2, 100, 1))]
    assert [f.shape for f in ragged(forms, 509)] == [(2, 97, 8), (8,), (2, 97, 1)]
    assert [f.shape for f in fitting(forms, 800)] == [(2, 50, 8), (8,), (2, 50, 1)]


def test_rows_are_rounded_up_and_all_else_is_exact():
    def key(*tensors):
        return described([Form.bare(t) for t in tensors])

    assert key(torch.empty(1000, 64), torch.empty(64)) == ["float32[<=1024x64]dense:16", "float32[1x64]dense:16"]
    same = key(torch.empty(4, 250, 64))
    assert key(torch.empty(4, 256, 64)) == same != key(torch.empty(4, 257, 64))
    others = [torch.empty(4, 250, 65), torch.empty(4, 250, 64).half()]
    others += [torch.empty(4, 64, 250).mT, torch.empty(4, 250, 128)[..., ::2]]
    assert all(key(x) != same for x in others)
    assert key(torch.empty(4, 250, 64), torch.empty(300, 64)) != key(torch.empty(4, 250, 64), torch.empty(301, 64))


# -- which is faster ----------------------------------------------------------------------------------------------------


def timed(*cycles):
    """Runs whose milliseconds are given, and a sampler that notes the order in which they ran."""
    order = []
    runs = [partial(order.append, i) for i in range(len(cycles))]
    left = [list(c) if isinstance(c, tuple) else [c] for c in cycles]

    def sample(run):
        run()
        times = left[order[-1]]
        times.append(times.pop(0))
        return times[-1]

    return runs, sample, order


def decided(eager, *ways):
    runs, sample, _ = timed(eager, *ways)
    return fastest({f"way{i}": run for i, run in enumerate(runs[1:], 1)}, runs[0], sample, 1e9)


def test_the_two_are_measured_in_turns_and_the_first_round_is_not_counted():
    runs, sample, order = timed((99, *[2] * 50), (99, *[1] * 50))
    found = race(runs[1], runs[0], sample, 1e9)
    assert order == [1, 0] * (measure.MOST + 1) and found.ratio == 0.5


def test_a_region_that_takes_long_is_measured_a_few_times():
    runs, sample, _ = timed(1000, 900)
    assert len(race(runs[1], runs[0], sample, 500).ours) == measure.LEAST


@pytest.mark.parametrize("eager, ways, way, why", [
    (1.0, (0.5,), "way1", "0.50 of eager's time"),
    (1.0, (0.96,), "way1", "0.96 of eager's time"),
    (1.0, (0.98,), "", "not faster: way1 takes 0.98 of eager's time"),
    (1.0, (2.0, 0.6, 0.7), "way2", "0.60 of eager's time"),
    ((1.0, 1.0, 1.0), ((0.5, 1.5, 0.5, 1.5, 0.5, 0.5, 0.5),), "", "not faster: way1 takes 0.50 of eager's time"),
    (0.04, (0.01,), "", "launch bound: the graph keeps what it had"),
])  # fmt: skip
def test_a_way_is_kept_only_where_it_is_faster_beyond_noise(eager, ways, way, why):
    found = decided(eager, *ways)
    assert (found.way, found.why) == (way, why)
    assert set(found.times) == {f"way{i}" for i in range(1, len(ways) + 1)}


# -- the table ----------------------------------------------------------------------------------------------------------

KEY = Key({"region": "glu_1", "operands": ["float32[<=64x16]dense"]})
KEPT = Record("kernel", "0.50 of eager's time", {"kernel": [0.5, 0.6, 1.0]})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "choices"


def only_file(folder):
    (file,) = folder.rglob("*.json")
    return file


def test_a_choice_outlives_its_process(folder):
    Table(folder).keep(KEY, KEPT)
    assert Table(folder).find(KEY) == KEPT
    assert Table(folder).find(Key({**KEY.fields, "driver": "2"})) is None
    assert [f.suffix for f in folder.rglob("*") if f.is_file()] == [".json"]


BROKEN = ["", "{", "[]", "null", "7", '{"format": 1}', "\x00\x01\xff", "[" * 100_000, '{"way": "kernel"}']


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_corrupt_file_is_as_if_it_were_not_there(folder, text):
    Table(folder).keep(KEY, KEPT)
    only_file(folder).write_text(text, encoding="latin-1")
    assert Table(folder).find(KEY) is None
    Table(folder).keep(KEY, KEPT)
    assert Table(folder).find(KEY) == KEPT


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"key": {"region": "glu_2"}}, {"way": 3}, {"times": []}, {"failed": None}]
)
def test_a_foreign_entry_is_not_believed(folder, change):
    Table(folder).keep(KEY, KEPT)
    file = only_file(folder)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert Table(folder).find(KEY) is None


def test_a_folder_in_the_place_of_a_file(folder):
    Table(folder).keep(KEY, KEPT)
    file = only_file(folder)
    file.unlink()
    file.mkdir()
    table = Table(folder)
    assert table.find(KEY) is None
    table.keep(KEY, KEPT)
    assert table.find(KEY) == KEPT


def test_a_full_disk_leaves_the_answer_in_memory_and_nothing_on_disk(folder, monkeypatch):
    def full(value, file, **options):
        file.write('{"format": 1, ')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(table.json, "dump", full)
    kept = Table(folder)
    kept.keep(KEY, KEPT)
    assert kept.find(KEY) == KEPT and Table(folder).find(KEY) is None
    assert not [f for f in folder.rglob("*") if f.is_file()]


def test_a_home_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    kept = Table(tmp_path / "file" / "choices")
    kept.keep(KEY, KEPT)
    assert kept.find(KEY) == KEPT
    with kept.alone() as alone:
        assert alone


def test_shipped_tables_come_first_and_a_broken_one_is_no_table(folder, tmp_path):
    Table(folder).keep(KEY, Record("", "slower"))
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "a.json").write_text("{")
    (shipped / "b.json").write_text('{"entries": []}')
    (shipped / "c.json").write_text(json.dumps({"entries": {KEY.digest: table.entry(KEY, KEPT)}}))
    assert Table(folder, shipped).find(KEY) == KEPT


def test_the_tables_that_are_shipped_are_whole():
    for file in table.SHIPPED.glob("*.json"):
        found = json.loads(file.read_text())
        assert found["format"] == table.FORMAT
        for digest, one in found["entries"].items():
            assert Key(one["key"]).digest == digest and table._record(one, Key(one["key"]))


WRITES = f"""
{ALONE}
from pathlib import Path
me = sys.argv[2]
print("ready", flush=True)
for turn in range(int(sys.argv[3])):
    for n in range(8):
        Table(Path(sys.argv[1])).keep(Key({{"n": n}}), Record(f"{{me}}-{{turn}}", me * 2000))
"""


def writer(folder, name, turns):
    command = [sys.executable, "-c", WRITES, str(folder), name, str(turns)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    process.stdout.readline()
    return process


def test_two_processes_write_while_a_third_reads(folder):
    both = [writer(folder, name, 60) for name in "ab"]
    seen = set()
    while any(p.poll() is None for p in both):
        for n in range(8):
            found = Table(folder).find(Key({"n": n}))
            if found is None:
                assert not any(way[0] == n for way in seen), "an entry was gone for a while"
            else:
                assert found.why == found.way[0] * 2000
                seen.add((n, found.way))
    for process in both:
        process.stdout.close()
    assert all(p.returncode == 0 for p in both) and {way[0] for _, way in seen} <= {"a", "b"}
    assert all(Table(folder).find(Key({"n": n})).way in ("a-59", "b-59") for n in range(8))


def test_a_killed_writer_leaves_whole_entries_and_no_lock(folder):
    process = writer(folder, "a", 10**6)
    until = time.monotonic() + 0.3
    while time.monotonic() < until or not list(folder.rglob("*.json")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    process.stdout.close()
    for n in range(8):
        found = Table(folder).find(Key({"n": n}))
        assert found is None or found.why == "a" * 2000
    with Table(folder).alone() as alone:
        assert alone


HOLDS = f"""
{ALONE}
import time
from pathlib import Path
with Table(Path(sys.argv[1])).alone() as alone:
    print(alone, flush=True)
    time.sleep(60)
"""


def test_one_process_measures_at_a_time_and_a_killed_one_gives_way(folder):
    command = [sys.executable, "-c", HOLDS, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout.readline() == "True\n"
    with Table(folder).alone() as alone:
        assert not alone
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with Table(folder).alone() as alone:
        assert alone


# -- the choice ---------------------------------------------------------------------------------------------------------


class Fake(Device):
    """Runs take as long as the way's name says."""

    def __init__(self, **versions):
        super().__init__(**{"torch": "2", "triton": "3", **versions})
        self.sampled = 0

    def sample(self, run):
        self.sampled += 1
        return run()

    def aside(self, device, work):
        return in_thread(work)


class Asked:
    """A worker that knows the answers, and notes what it was asked."""

    def __init__(self, **answers):
        self.answers, self.asked, self.free = answers, [], threading.Event()
        self.free.set()

    def ask(self, trial):
        self.free.wait(10)
        self.asked.append(trial)
        answer = self.answers.get(trial.way.name, "")
        if isinstance(answer, Exception):
            raise answer
        return answer


class Way:
    def __init__(self, name, takes):
        self.name, self.takes = name, takes

    def __call__(self, *tensors):
        return self.takes


def side(**ways):
    takes = ways or {"kernel": 0.5}
    return Side("glu_1", "forward", {n: Way(n, t) for n, t in takes.items()}, Way("eager", 1.0), Way("exact", 9.0))


@pytest.fixture
def chooser(folder):
    def made(device=None, answers=(), total=1e9):
        return Chooser(device or Fake(), Table(folder), Asked(**dict(answers)), Budget(1e9, total))

    return made


def soon(chooser, side, *tensors):
    """What the choice settles on."""
    until = time.monotonic() + 10
    while not side.known and time.monotonic() < until:
        found = chooser.way(side, tensors or (X,))
        time.sleep(0.001)
    assert side.known
    return found and found.name


def test_an_unknown_key_runs_eager_now_and_what_was_measured_later(chooser):
    mine, region = chooser(), side(kernel=0.5, other=0.4, slow=3.0)
    mine._jobs._worker.free.clear()
    assert mine.way(region, (X,)) is None and not region.known
    mine._jobs._worker.free.set()
    assert soon(mine, region) == "other"
    sampled = mine.device.sampled
    assert mine.way(region, (X,)).name == "other" and mine.device.sampled == sampled
    assert len(mine._jobs._worker.asked) == 3


def test_another_process_finds_the_answer_and_asks_nobody(chooser):
    assert soon(chooser(), side()) == "kernel"
    later = chooser(answers={"kernel": "wrong"})
    assert later.way(side(), (X,)).name == "kernel"
    assert not later._jobs._worker.asked and not later.device.sampled


@pytest.mark.parametrize("change", [{"driver": "2"}, {"triton": "4"}, {"torch": "9"}, {"device": "another"}])
def test_other_versions_are_other_keys(chooser, change):
    assert soon(chooser(), side()) == "kernel"
    later = chooser(Fake(**change))
    assert later.key(side(), (X,)) != chooser().key(side(), (X,))
    assert soon(later, side()) == "kernel" and later._jobs._worker.asked


def test_a_slower_kernel_is_remembered_as_such(chooser):
    assert soon(chooser(), side(kernel=2.0)) is None
    later, region = chooser(), side(kernel=2.0)
    assert later.way(region, (X,)) is None and list(region.known.values()) == [None]
    assert not later._jobs._worker.asked


def test_a_failed_way_is_reported_once_and_never_used_at_any_size(chooser):
    why = "it ended its process (SIGSEGV)"
    mine, region = chooser(answers={"kernel": why}), side(kernel=0.1, other=0.5)
    with pytest.warns(
        RuntimeWarning, match=r"gatec: glu_1 forward kernel is not used: it ended its process \(SIGSEGV\)"
    ):
        assert soon(mine, region) == "other"
    again = side(kernel=0.1, other=0.5)
    assert soon(mine, again, torch.randn(999, 16)) == "other"
    assert [t.way.name for t in mine._jobs._worker.asked] == ["kernel", "other", "other"]
    assert {"glu_1 forward kernel": why} == choose.FAILED
    other_driver = chooser(Fake(driver="2"))
    assert soon(other_driver, side(kernel=0.1, other=0.5)) == "kernel"


def test_a_region_without_a_right_way_is_not_measured(chooser):
    mine = chooser(answers={"kernel": "is off by 1.0e+00"})
    with pytest.warns(RuntimeWarning):
        assert soon(mine, side()) is None
    assert not mine.device.sampled
    choose.FAILED.clear()
    later = chooser()
    with pytest.warns(RuntimeWarning):  # once in each process
        assert soon(later, side(), torch.randn(7, 16)) is None
    assert not later._jobs._worker.asked


def test_a_kernel_may_refuse_operands_without_being_bad(chooser):
    mine = chooser(answers={"kernel": "TypeError: this kernel was generated for float32"})
    assert soon(mine, side()) is None and not choose.FAILED
    assert soon(chooser(), side(), torch.randn(7, 16)) == "kernel"


def test_a_capture_runs_eager_and_decides_nothing(chooser):
    mine, region = chooser(), side()
    mine.device.captures = True
    assert mine.way(region, (X,)) is None and not region.known and not mine._jobs._worker.asked
    mine.device.captures = False
    assert soon(mine, region) == "kernel"
    mine.device.captures = True
    assert mine.way(region, (X,)).name == "kernel"


def test_at_rest_only_known_answers_are_given(chooser):
    mine, region = chooser(), side()
    with mine.resting():
        assert mine.way(region, (X,)) is None
        assert not region.known and not mine._jobs._worker.asked
    assert soon(mine, region) == "kernel"
    with mine.resting():
        assert mine.way(side(), (X,)).name == "kernel"


def test_a_spent_budget_runs_eager(chooser):
    mine, region = chooser(total=0), side()
    assert mine.way(region, (X,)) is None and list(region.known.values()) == [None]
    assert not mine._jobs._worker.asked
    with mine.waiting(Budget(1e9, 1e9)) as answers:
        assert mine.way(region, (X,)).name == "kernel"
    assert [(a.side.name, a.record.way) for a in answers] == [("forward", "kernel")]


def test_measuring_is_charged_to_the_budget(folder):
    times = iter((10.0, 10.3))
    mine = Chooser(Fake(), Table(folder), Asked(), Budget(), lambda: next(times))
    soon(mine, side())
    assert mine.budget.spent == pytest.approx(300)


def test_a_device_without_room_is_left_alone(chooser):
    mine, region = chooser(), side()
    mine.device.has_room = False
    assert mine.way(region, (X,)) is None and not mine._jobs._worker.asked and region.known


def test_no_answer_is_asked_for_twice_and_not_kept(chooser, folder):
    mine = chooser(answers={"kernel": Unanswered("the process was killed from outside")})
    assert soon(mine, side()) is None
    assert len(mine._jobs._worker.asked) == 2 and not list(folder.rglob("*.json"))
    assert soon(chooser(), side()) == "kernel"


def test_a_protocol_that_breaks_is_no_answer(chooser, folder):
    mine = chooser(answers={"kernel": ValueError("not JSON")})
    assert soon(mine, side()) is None and not list(folder.rglob("*.json"))


@pytest.mark.parametrize("error", [RuntimeError("no such event"), AssertionError(), OSError()])
def test_nothing_that_fails_here_reaches_the_forward(chooser, error):
    mine, region = chooser(), side()

    def sample(run):
        raise error

    mine.device.sample = sample
    with pytest.warns(RuntimeWarning, match="gatec: glu_1 forward is not used"):
        assert soon(mine, region) is None
    assert mine.way(region, (X,)) is None


def test_a_device_that_runs_out_of_memory_while_measuring_says_nothing(chooser, folder):
    mine = chooser()

    def sample(run):
        raise torch.OutOfMemoryError("CUDA out of memory")

    mine.device.sample = sample
    assert soon(mine, side()) is None and not list(folder.rglob("*.json"))


def test_a_warning_that_somebody_made_an_error_is_none(chooser):
    mine = chooser(answers={"kernel": "wrong"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert soon(mine, side()) is None
    assert choose.FAILED


def test_empty_operands_and_regions_without_ways_ask_nobody(chooser):
    mine = chooser()
    assert mine.way(side(), (torch.randn(0, 16), X)) is None
    assert mine.way(Side("glu_1", "forward", {}, eager, eager), (X, X)) is None
    assert mine.way(side(), (X, X.to("meta"))) is None  # of two devices
    assert not mine._jobs._worker.asked


def test_while_another_process_measures_eager_runs(chooser, folder):
    mine, region = chooser(), side()
    with Table(folder).alone():
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            assert mine.way(region, (X,)) is None
    assert not region.known and soon(mine, region) == "kernel"


def test_of_two_that_tune_at_once_one_measures_and_both_know(chooser, folder):
    first, second = chooser(), chooser()
    held = threading.Event()

    def measures():
        with first.table.alone() as alone:
            held.set()
            time.sleep(0.2)
            first.table.keep(first.key(side(), (X,)), Record("kernel", "of the other"))
            assert alone

    other = threading.Thread(target=measures)
    other.start()
    held.wait()
    with second.waiting() as answers:
        assert second.way(side(), (X,)).name == "kernel"
    other.join()
    assert [a.record.why for a in answers] == ["of the other"] and not second.device.sampled


def test_tuning_waits_no_longer_than_its_budget(chooser, folder):
    mine = chooser()
    with Table(folder).alone(), mine.waiting(Budget(200.0, 200.0)) as answers:
        assert mine.way(side(), (X,)) is None
    assert not answers and soon(mine, side()) == "kernel"


TUNES = f"""
{BARE}import sys, time
from pathlib import Path
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_dispatch import *
def slow(run):
    print("measuring", flush=True)
    time.sleep(60)
device = Fake()
device.sample = slow
mine = Chooser(device, Table(Path(sys.argv[1])), Asked(), Budget())
with mine.waiting():
    mine.way(side(), (X,))
"""


def test_a_tuner_killed_while_it_measures_leaves_nothing_behind(chooser, folder):
    tuner = subprocess.Popen([sys.executable, "-c", TUNES, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert tuner.stdout.readline() == "measuring\n"
    tuner.kill()
    tuner.wait()
    tuner.stdout.close()
    assert not list(folder.rglob("*.json")) and soon(chooser(), side()) == "kernel"


def test_what_is_remembered_is_bounded(chooser, monkeypatch):
    monkeypatch.setattr(choose, "REMEMBERED", 4)
    mine, region = chooser(total=0), side()
    for rows in range(1, 20):
        mine.way(region, (torch.randn(rows, 16),))
    assert len(region.known) <= 4


def test_a_known_answer_costs_a_lookup(chooser):
    mine, region = chooser(), side()
    soon(mine, region, X, X)
    start = time.perf_counter()
    for _ in range(2000):
        mine.way(region, (X, X))
    assert (time.perf_counter() - start) / 2000 < 100e-6  # 3 microseconds on an idle machine


def test_a_trial_is_its_forms_and_not_its_data():
    assert len(pickle.dumps(trial(right))) < 2000
