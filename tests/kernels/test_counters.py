"""Counters are zeros for whoever gets them, and nobody else's while their launch may run."""

import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from normlib.kernels import host as module
from normlib.kernels.host import counters

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
DEFAULT, SIDE, OTHER = 0, 7, 11  # handles of streams


class Gpus:
    """Fake GPUs as PyTorch reports them; each thread has a current stream, at first the default one."""

    def __init__(self):
        self._thread = threading.local()
        self.external = set()  # handles of streams that are not PyTorch's own
        self.fills = []  # (thread, stream, counters) of every fill, in order
        self.waits = []  # streams that the host has waited for, each with the fills before
        self.memory = []  # what was filled, weakly

    @property
    def stream(self):
        return getattr(self._thread, "stream", DEFAULT)

    @stream.setter
    def stream(self, handle):
        self._thread.stream = handle

    @property
    def capturing(self):
        return getattr(self._thread, "capturing", False)

    @capturing.setter
    def capturing(self, value):
        self._thread.capturing = value

    def zeros(self, n, device):
        self.fills.append((threading.get_ident(), self.stream, n))
        filled = torch.zeros(n, dtype=torch.int32)
        self.memory.append(weakref.ref(filled.untyped_storage()))
        return filled

    def wait(self):
        self.waits.append((self.stream, len(self.fills)))

    def current_stream(self, device):
        handle = self.stream
        event = SimpleNamespace(synchronize=self.wait)
        identity = handle if handle in self.external else 3 + 2 * handle
        return SimpleNamespace(stream_id=identity, record_event=lambda: event)


@pytest.fixture
def gpus(monkeypatch):
    found = Gpus()
    for table in ("_of_stream", "_slabs", "_left"):
        monkeypatch.setattr(module, table, {})
    monkeypatch.setattr(module, "INTERPRETED", False)
    monkeypatch.setattr(module, "_zeros", found.zeros)
    monkeypatch.setattr(module, "capturing", lambda device: found.capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", found.current_stream)
    active = SimpleNamespace(get_current_stream=lambda index: found.stream)
    monkeypatch.setattr("triton.runtime.driver", SimpleNamespace(active=active))
    return found


def captured(gpus, n, device=FIRST):
    gpus.capturing = True
    try:
        return counters(n, device)
    finally:
        gpus.capturing = False


def overlap(a, b):
    """Returns True if two live tensors share memory."""
    return a.data_ptr() < b.data_ptr() + b.nbytes and b.data_ptr() < a.data_ptr() + a.nbytes


def disjoint(*tensors):
    return not any(overlap(a, b) for i, a in enumerate(tensors) for b in tensors[:i])


def test_launches_of_a_stream_pass_their_counters_on_and_only_the_first_fills(gpus):
    gpus.stream = SIDE
    first = counters(100, FIRST)
    assert first.dtype == torch.int32 and first.numel() >= 100 and not first.any()
    for n in (1, 100, 1000):
        assert counters(n, FIRST) is first
    assert len(gpus.fills) == 1


def test_another_stream_and_another_device_have_other_counters(gpus):
    found = []
    for stream in (DEFAULT, SIDE, OTHER):
        gpus.stream = stream
        found.append(counters(8, FIRST))
    assert disjoint(*found) and len(gpus.fills) == 1
    found.append(counters(8, SECOND))
    assert disjoint(*found) and len(gpus.fills) == 2


def test_each_captured_launch_has_counters_of_its_own_and_fills_none(gpus):
    gpus.stream = SIDE
    eager = counters(8, FIRST)
    found = [captured(gpus, n) for n in (8, 8, 33)]
    assert disjoint(eager, *found) and len(gpus.fills) == 1
    assert [t.numel() >= n for t, n in zip(found, (8, 8, 33), strict=True)] == [True] * 3
    gpus.stream = OTHER
    assert disjoint(eager, *found, counters(8, FIRST))


def test_a_capture_before_any_launch_fills_its_own_and_leaves_nothing_for_others(gpus):
    gpus.stream = SIDE
    first, again = captured(gpus, 8), captured(gpus, 8)
    assert [(stream, n) for _, stream, n in gpus.fills] == [(SIDE, 8)] * 2
    assert gpus.waits == []  # which a capture would not survive
    eager = counters(8, FIRST)
    later = captured(gpus, 8)
    assert len(gpus.fills) == 3 and disjoint(first, again, eager, later)


def test_a_stream_that_needs_more_gets_others_and_keeps_those(gpus):
    few = counters(8, FIRST)
    many = counters(module.SLICE + 1, FIRST)
    assert disjoint(few, many) and many.numel() >= 2 * few.numel()
    assert counters(8, FIRST) is many and len(gpus.fills) == 1


def test_a_launch_may_need_more_than_a_slab(gpus):
    found = counters(module.SLAB + 1, FIRST)
    assert found.numel() > module.SLAB and not found.any()
    assert captured(gpus, 2 * module.SLAB).numel() == 2 * module.SLAB
    assert [n for *_, n in gpus.fills] == [2 * module.SLAB, 2 * module.SLAB]
    assert counters(8, FIRST) is found  # what no slab has is no reason to add one


def test_captures_that_use_a_slab_up_fill_until_the_next_launch_adds_one(gpus, monkeypatch):
    monkeypatch.setattr(module, "SLAB", 4 * module.SLICE)
    for stream in (SIDE, OTHER):
        gpus.stream = stream
        counters(8, FIRST)
    kept = [captured(gpus, module.SLICE) for _ in range(2)]
    assert len(gpus.fills) == 1
    captured(gpus, 8), captured(gpus, 8)
    assert [(stream, n) for _, stream, n in gpus.fills[1:]] == [(OTHER, 8)] * 2
    found = [counters(8, FIRST)]
    gpus.stream = SIDE
    found.append(counters(8, FIRST))
    assert [n for *_, n in gpus.fills[3:]] == [module.SLAB]
    assert disjoint(*kept, *found, captured(gpus, 8))
    assert len(gpus.fills) == 4


def test_a_launch_that_a_slab_has_too_few_left_for_is_reason_enough_to_add_one(gpus, monkeypatch):
    monkeypatch.setattr(module, "SLAB", 8 * module.SLICE)
    counters(8, FIRST)
    captured(gpus, 5 * module.SLICE)
    captured(gpus, 3 * module.SLICE)  # of which two are left
    counters(8, FIRST)
    captured(gpus, 3 * module.SLICE)
    assert [n for *_, n in gpus.fills] == [module.SLAB, 3 * module.SLICE, module.SLAB]


def test_a_slab_that_is_used_up_stays_for_the_graphs_that_hold_its_addresses(gpus, monkeypatch):
    monkeypatch.setattr(module, "SLAB", 2 * module.SLICE)
    counters(8, FIRST)
    captured(gpus, module.SLICE)
    slab = gpus.memory[0]
    captured(gpus, 8)
    counters(8, FIRST)
    assert len(module._slabs[FIRST]) == 2
    assert slab() is not None


def test_slabs_are_filled_on_the_default_stream_in_a_thread_of_their_own_and_waited_for(gpus):
    """While torch.compile warms up for a CUDA graph, what its thread allocates is the graph's, on whatever stream."""
    gpus.stream = SIDE
    counters(8, FIRST)
    ((thread, stream, _),) = gpus.fills
    assert thread != threading.get_ident() and stream == DEFAULT
    assert gpus.waits == [(DEFAULT, 1)]


def test_no_mode_of_the_thread_sees_a_slab_and_no_inference_marks_it(gpus):
    class Refusing(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            assert operator.is_view, operator
            return operator(*args, **(kwargs or {}))

    with torch.inference_mode(), Refusing():
        found = counters(8, FIRST)
    assert not found.is_inference()


def test_a_stream_that_may_be_destroyed_keeps_nothing(gpus):
    gpus.stream = SIDE
    gpus.external = {SIDE}  # and another one that gets its handle while launches of this one still run
    assert disjoint(counters(8, FIRST), counters(8, FIRST))
    assert [stream for _, stream, _ in gpus.fills] == [SIDE, SIDE]
    assert not module._of_stream


def test_slices_begin_where_lines_do(gpus):
    """Else Triton would compile a kernel for another address, and in a capture do so there."""
    counters(8, FIRST)
    offsets = [captured(gpus, n).storage_offset() for n in (1, 2, 31, 33, 100)]
    assert all(offset * 4 % 128 == 0 for offset in offsets)


def test_threads_share_a_stream_and_nothing_else(gpus):
    together = threading.Barrier(8)

    def launch(thread):
        gpus.stream = thread % 4
        together.wait()
        return [counters(n, FIRST) for n in (8, 8, module.SLICE + 1)], captured(gpus, 8)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(launch, range(8)))
    for stream in range(4):
        (mine, own), (others, its_own) = found[stream], found[stream + 4]
        assert mine[2] is others[2] and disjoint(own, its_own, mine[2])
    assert disjoint(*(mine[2] for mine, _ in found[:4]), *(own for _, own in found))
    assert len(gpus.fills) == 1


def test_the_interpreter_fills_them_for_each_launch(gpus, monkeypatch):
    monkeypatch.setattr(module, "INTERPRETED", True)
    assert disjoint(counters(8, torch.device("cpu")), counters(8, torch.device("cpu")))
    assert [n for *_, n in gpus.fills] == [8, 8]


class Work:
    """Launches of streams and replays of graphs: those of one follow each other, others run at any time beside."""

    def __init__(self):
        self._running = {}  # by stream or graph: the counters of its launch, which are not zeros now

    def launch(self, owner, mine):
        self.finish(owner)
        assert not mine.any(), "counters of a launch that may still run"
        mine.fill_(1)
        self._running[owner] = mine

    def finish(self, owner):
        if owner in self._running:
            self._running.pop(owner).zero_()

    def finish_any(self, rng):
        for owner in [owner for owner in self._running if rng.random() < 0.3]:
            self.finish(owner)


@pytest.mark.parametrize("seed", range(20))
def test_no_launch_ever_finds_what_another_has_not_left(gpus, monkeypatch, seed):
    monkeypatch.setattr(module, "SLAB", 8 * module.SLICE)  # so that several are used up
    rng, work, graphs = random.Random(seed), Work(), []
    for _ in range(300):
        device = rng.choice((FIRST, SECOND))
        gpus.stream, n = rng.choice((DEFAULT, SIDE, OTHER)), rng.choice((1, 8, 100, 1000, 3000))
        act = rng.random()
        if act < 0.5:
            work.launch((device, gpus.stream), counters(n, device)[:n])
        elif act < 0.7:
            graphs.append([captured(gpus, n, device)[:n] for _ in range(rng.randint(1, 3))])
        elif graphs:
            graph = rng.randrange(len(graphs))
            for mine in graphs[graph]:
                work.launch(graph, mine)
        work.finish_any(rng)
    assert sum(map(len, module._slabs.values())) > 4
