"""A worker's process may do what it likes: it costs one cell, and the others are measured."""

import multiprocessing
import os
import random
import signal
import sys
import time

import planted
import pytest
import scripted
from scripted import Silent

from bench.measure import runner
from bench.measure.providers import providers
from bench.measure.worker import Worker
from bench.results import records as results
from bench.results import samples

pytestmark = pytest.mark.chance

# The least that a healthy cell of these sizes never needs: what is silent for longer hangs.
SILENCE_S = 12.0
# Far beyond what anything here takes, on whatever machine: only a hang meets it.
LIMIT_S = 120.0
SPOILED = {
    planted.raises: ("crash", "RuntimeError: it broke"),
    planted.dies: ("crash", "died of SIGSEGV"),
    planted.exits: ("crash", "ended with status 7"),
    planted.dies_while_timed: ("crash", "died of SIGSEGV"),
    planted.hangs: ("timeout", "nothing was heard of it for 12 s"),
    planted.allocates: ("oom", "can't allocate memory"),
    planted.killed: ("oom", "killed"),
    planted.gives_nan: ("wrong", "y: NaN"),
    planted.forges_a_message: ("crash", "its process sent a message that the instrument did not"),
}


@pytest.fixture(scope="module", autouse=True)
def _fork_server():
    """Has the fork server import what it does, which takes a busy machine longer than a cell may be silent."""
    found = []
    worker = Worker(plan().settings, LIMIT_S)
    worker.measure(cases()[0], [planted.TORCH], found.append, lambda name: None)
    worker.close()
    assert found[0].record.status == "ok"


def cases(**given):
    return scripted.cases(**{"mode": "fwd,bwd", **given})


def plan(*chosen, found=None, **changes):
    return scripted.plan(planted.TORCH, *chosen, found=found or cases(), **{"cell_timeout": SILENCE_S, **changes})


def test_each_way_to_fail_has_its_status_and_reason_and_all_other_cells_are_measured(tmp_path):
    spoilers = [planted.Planted(spoil) for spoil in SPOILED]
    planned = plan(*spoilers, providers()["normlib"], isolated=True)
    outcome = runner.run(planned, tmp_path, {}, [], Silent())
    assert outcome.complete
    found = {(r.provider, r.mode): r for r in outcome.records}
    assert len(found) == len(outcome.records) == planned.cells
    for spoil, (status, reason) in SPOILED.items():
        spoiled = found.pop((spoil.__name__, "fwd"))
        assert (spoiled.status, reason in spoiled.reason) == (status, True), spoiled
    assert {(r.status, r.latency_us is not None) for r in found.values()} == {("ok", True)}
    with_samples = {r.key for r in outcome.records if r.latency_us is not None}
    assert {kept.key for kept in samples.read(tmp_path / samples.FILE)} == with_samples


def test_a_worker_that_cannot_start_costs_its_cells_and_does_not_hang(tmp_path):
    class Unreachable(planted.Planted):
        def __reduce__(self):
            return os._exit, (3,)

    found = []
    worker = Worker(plan().settings, SILENCE_S)
    worker.measure(cases()[0], [planted.TORCH, Unreachable(planted.raises)], found.append, lambda name: None)
    assert [(f.record.status, f.record.reason) for f in found] == [("crash", "its process ended with status 3")] * 2


class Unknown(planted.Planted):
    """Made here, and known nowhere else."""

    def __reduce__(self):
        return _elsewhere, ()


def _elsewhere():
    raise LookupError("no such provider")


def test_a_provider_that_the_worker_cannot_load_costs_its_cells_and_no_more(tmp_path):
    found = []
    worker = Worker(plan().settings, SILENCE_S)
    worker.measure(cases()[0], [Unknown(planted.raises)], found.append, lambda name: None)
    worker.measure(cases()[0], [planted.TORCH], found.append, lambda name: None)
    worker.close()
    assert [(f.record.status, f.record.reason) for f in found] == [
        ("crash", "its process cannot load it: LookupError: no such provider"),
        ("ok", ""),
    ]


def test_at_the_deadline_the_cell_in_flight_is_stopped_and_skipped(tmp_path):
    # That it hangs would be found much later.
    limits = {"deadline": time.monotonic() + 3.0, "cell_timeout": LIMIT_S}
    outcome = runner.run(plan(planted.Planted(planted.hangs), isolated=True, **limits), tmp_path, {}, [], Silent())
    assert outcome.stopped_by == "time budget"
    assert {r.status for r in outcome.records} == {"skipped"}


def test_a_cuda_graph_that_spoils_its_process_costs_one_worker_and_is_not_tried_again(tmp_path):
    chosen = {"found": cases(tokens="2,3,4", mode="fwd"), "yardstick": planted.PatchedTiming()}
    planned = plan(planted.Planted(planted.spoils_its_process), **chosen, isolated=True)
    outcome = runner.run(planned, tmp_path, {}, [], Silent())
    assert outcome.complete and {r.status for r in outcome.records} == {"ok"} and len(outcome.records) == 6
    spoiling = [r.reason for r in outcome.records if r.provider == "spoils_its_process"]
    assert ["no graph of spoils_its_process" in reason for reason in spoiling] == [False, True, True]


MANY = {"tokens": "1,2,3,4,5,6,7,8", "hidden": "64,96,128,160"}
KILLS = 10
# A sitting dies so many calls and returns after its first record: before it can write anything else, or up to three
# cells later. A cell makes about twenty thousand. By time, a sitting on a busy machine could finish before it dies.
SOON, LATER = 100, 60_000


def sit(folder, calls):
    """One sitting of the run in `folder`, which kills itself after so many calls; None: never."""

    def count(*_):
        nonlocal calls
        calls -= 1
        if not calls:
            os.kill(os.getpid(), signal.SIGKILL)

    def append(path, record):
        appended(path, record)
        if calls is not None:
            sys.setprofile(count)

    appended, results.append = results.append, append
    runner.run(plan(found=cases(**MANY)), folder, {}, runner.kept_records(folder), Silent())


def test_a_run_that_is_killed_ten_times_ends_with_every_cell_once(tmp_path):
    rng = random.Random(0)
    context = multiprocessing.get_context("forkserver")
    for kill in range(KILLS):
        sitting = context.Process(target=sit, args=(tmp_path, rng.randint(1, LATER if kill % 2 else SOON)))
        sitting.start()
        sitting.join()
        assert sitting.exitcode == -signal.SIGKILL, "the run ended before it was killed ten times"
    assert len([*results.read(tmp_path / runner.RECORDS)]) > KILLS  # some sittings have measured several cells
    sitting = context.Process(target=sit, args=(tmp_path, None))
    sitting.start()
    sitting.join()
    assert sitting.exitcode == 0
    lines = (tmp_path / runner.RECORDS).read_text().splitlines()
    records = list(results.read(tmp_path / runner.RECORDS))
    assert {(r.case, r.provider) for r in records} == {(case, "torch") for case in cases(**MANY)}
    assert len(lines) == len(records) == len({r.key for r in records})
    assert {r.status for r in records} == {"ok"}
    assert {s.key for s in samples.read(tmp_path / samples.FILE)} == {r.key for r in records}
