"""A sweep over ranks that ends early, at any moment: rank 0 merges and says which cells are missing."""

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import rich.console
from rank_sweeps import CPU, cases, plan, record
from torch.distributed import DistNetworkError, HashStore

from bench.measure import environment, runner
from bench.measure.progress import LineDisplay
from bench.ranks import gathering, shards
from bench.ranks import team as teams
from bench.ranks.team import Team
from bench.report.sections import trust
from bench.results import load as data
from bench.results import records as results
from bench.results.records import RECORDS, SHARDS

ROOT = Path(__file__).resolve().parents[2]
# Far beyond what these runs take: only a hang meets it.
LIMIT_S = 120


CASES = cases()


class Leading:
    """Rank 0 of two in this process. The second has come, and is killed when it has measured one cell."""

    def __init__(self, folder, monkeypatch):
        monkeypatch.setattr(shards, "_LAST_WORDS_S", 0.3)
        monkeypatch.setattr(teams, "_NEAR_S", 0.3)
        self.plan = plan(cell_timeout=0.1)
        self.folder, self.patch = folder, monkeypatch
        self.described = environment.collect(CPU, self.plan.providers) | {"ranks": 2, "notes": [], "copy_gbps": None}
        self.store = HashStore()
        self.team = Team(self.store, 0, 2)
        here = {"described": self.described, "plan": shards._fingerprint(self.plan)}
        Team(self.store, 1, 2).tell("here/1", here)
        place = gathering.rank_folder(folder, 1)
        place.mkdir(parents=True)
        results.append(place / RECORDS, record(CASES[-1]))

    def before(self, owner, name, happens):
        """Has something happen at each call of a function, before it does anything."""
        original = getattr(owner, name)

        def wrapped(*arguments, **options):
            happens()
            return original(*arguments, **options)

        self.patch.setattr(owner, name, wrapped)

    def lead(self):
        display = LineDisplay(rich.console.Console(quiet=True))
        with self.team.signals:
            return shards.lead(self.team, self.plan, self.folder, self.described, [], display)

    def said_what_is_missing(self, stopped_by):
        have = list(results.read(self.folder / RECORDS))
        missing = [case.label for case in CASES if case not in {r.case for r in have}]
        assert CASES[-1] in {r.case for r in have}, "what the second rank has measured"
        assert missing, "at least the second rank's other cells"
        written = environment.read(self.folder)
        assert self.described["said"][-1].startswith(f"{len(missing)} of {len(CASES)} cells are missing: {missing[0]} ")
        assert self.described["said"][-1] in written["notes"]
        assert (written["complete"], written["stopped_by"]) == (False, stopped_by)
        assert not (self.folder / SHARDS).exists()


@pytest.fixture
def leading(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    yield Leading(tmp_path, monkeypatch)
    assert signal.getsignal(signal.SIGTERM) == before


class _Finalizer:
    """Has a signal sent while Python runs a finalizer, which drops what its handler raises."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # Python handles signals between steps like these
            pass


def once(happens):
    left = [happens]
    return lambda: left and left.pop()()


def terminated():
    os.kill(os.getpid(), signal.SIGTERM)


MOMENTS = {
    "as ranks come": (Team, "hear"),
    "as the cells are dealt": (Team, "tell"),
    "before the first cell": (runner, "InProcess"),
    "between cells": (LineDisplay, "running"),
    "as a cell is written down": (LineDisplay, "finished"),
    "as files are closed": (LineDisplay, "stop"),
    "as the others are waited for": (Team, "wait_for"),
    "as what they have sent is taken": (shards, "_take"),
}
LATER = {
    "as devices are compared": (gathering, "agreement"),
    "as records are merged": (gathering, "merge"),
    "as the end is written": (environment, "write"),
}


@pytest.mark.chance
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "interrupt")])
def test_a_signal_at_any_moment_ends_the_measuring_and_no_more(leading, moment, number, name):
    leading.before(*MOMENTS[moment], once(lambda: os.kill(os.getpid(), number)))
    assert leading.lead().stopped_by == name
    leading.said_what_is_missing(name)


@pytest.mark.chance
@pytest.mark.parametrize("moment", LATER)
def test_a_signal_after_the_measuring_changes_nothing(leading, moment):
    # The second rank is found to be lost for its silence, and then the signal comes.
    merging = []
    leading.before(gathering, "device_of", lambda: merging.append(True))
    sent = once(terminated)
    leading.before(*LATER[moment], lambda: sent() if merging else None)
    assert leading.lead().stopped_by == "a lost rank"
    assert leading.team.signals.told == "SIGTERM"
    leading.said_what_is_missing("a lost rank")


@pytest.mark.chance
def test_signals_at_all_moments_are_as_one(leading):
    for owner, name in [*MOMENTS.values(), *LATER.values()]:
        leading.before(owner, name, terminated)
        leading.before(owner, name, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert leading.lead().stopped_by == "interrupt"
    leading.said_what_is_missing("interrupt")


@pytest.mark.chance
def test_a_second_signal_does_not_disturb_the_closing(leading):
    leading.before(LineDisplay, "running", once(terminated))
    leading.before(LineDisplay, "stop", once(lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert leading.lead().stopped_by == "SIGTERM"
    # Which a run writes last of all.
    assert leading.described["devices"][0]["conditions"] is not None


@pytest.mark.chance
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_finalizer_is_heard_at_the_next_cell(leading):
    leading.before(LineDisplay, "finished", once(lambda: _Finalizer() and None))
    assert leading.lead().stopped_by == "SIGTERM"
    leading.said_what_is_missing("SIGTERM")
    # The cell in which it came is the last one of rank 0.
    assert len(list(results.read(leading.folder / RECORDS))) == 2


@pytest.mark.chance
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_finalizer_is_heard_while_ranks_come(leading):
    leading.store.delete_key("here/1")
    leading.team = Team(leading.store, 0, 2, 2.0)
    leading.before(Team, "hear", once(lambda: _Finalizer() and None))
    assert leading.lead().stopped_by == "SIGTERM"
    leading.said_what_is_missing("SIGTERM")


@pytest.mark.parametrize("error", [AssertionError(), OSError("no fork server"), DistNetworkError("no store")])
def test_an_error_that_comes_before_its_signal_is_told_as_the_signal(leading, error):
    def fails():
        leading.before(teams.time, "sleep", once(terminated))
        raise error

    leading.before(LineDisplay, "running", fails)
    assert leading.lead().stopped_by == "SIGTERM"
    leading.said_what_is_missing("SIGTERM")


def test_an_error_without_a_signal_is_raised_when_all_is_merged(leading):
    def fails():
        raise AssertionError("a mistake in the instrument")

    leading.before(LineDisplay, "running", fails)
    with pytest.raises(AssertionError, match="a mistake in the instrument"):
        leading.lead()
    leading.said_what_is_missing("error")


@pytest.mark.parametrize("moment", ["between cells", "as the others are waited for"])
def test_without_torchruns_store_rank_0_merges_what_there_is(leading, moment):
    def fails():
        raise DistNetworkError("Connection was likely closed")

    def gone():
        for name in ("set", "get", "check"):
            leading.before(HashStore, name, fails)

    leading.before(*MOMENTS[moment], once(gone))
    assert leading.lead().stopped_by == "the loss of torchrun"
    leading.said_what_is_missing("the loss of torchrun")


@pytest.mark.chance
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_another_rank_that_is_told_to_end_ends_quietly(leading, number):
    leading.before(runner, "InProcess", lambda: os.kill(os.getpid(), number))
    word = {"folder": str(leading.folder), "token": "none", "left": [0, 1]}
    leading.team.tell("word", word)
    assert shards.assist(Team(leading.store, 1, 2), leading.plan, leading.described) == 130


def test_another_rank_raises_its_own_mistakes(leading):
    def fails():
        raise RuntimeError("a mistake in the instrument")

    leading.before(runner, "InProcess", fails)
    leading.team.tell("word", {"folder": str(leading.folder), "token": "none", "left": [0, 1]})
    with pytest.raises(RuntimeError, match="a mistake in the instrument"):
        shards.assist(Team(leading.store, 1, 2), leading.plan, leading.described)


@pytest.mark.chance
def test_a_cell_whose_worker_was_ended_first_is_missing_and_no_crash(leading):
    leading.plan = replace(leading.plan, isolated=True, cell_timeout=float(LIMIT_S))
    ended, others = [], multiprocessing.active_children()  # other tests' processes, which stay

    def end_the_worker():
        if ended:
            terminated()
        for worker in set(multiprocessing.active_children()) - set(others):
            ended.append(worker.pid)
            worker.terminate()

    leading.before(LineDisplay, "running", end_the_worker)
    assert leading.lead().stopped_by == "SIGTERM" and ended
    leading.said_what_is_missing("SIGTERM")
    assert {r.status for r in results.read(leading.folder / RECORDS)} == {"ok"}


def test_what_ranks_have_left_is_read_where_rank_0_was_killed(tmp_path):
    described = environment.collect(CPU, {}) | {"cells_planned": len(CASES), "complete": False, "stopped_by": ""}
    environment.write(tmp_path, described)
    results.rewrite(tmp_path / RECORDS, [record(CASES[0])])
    for rank in (0, 1):
        place = gathering.rank_folder(tmp_path, rank)
        place.mkdir(parents=True)
        results.append(place / RECORDS, record(CASES[1 + rank]))
        results.append(place / RECORDS, record(CASES[3], status="crash", reason="its process died of SIGTERM"))
        (place / results.RECORDS).open("a").write('{"op": "rms')
    before = sorted(tmp_path.rglob("*"))
    run = data.load(tmp_path)
    assert [r.case for r in run.records] == list(CASES[:3]) and [r.rank for r in run.records] == [None, 0, 1]
    complete, sentence = trust.completeness(run)
    assert not complete and sentence.endswith(f"having measured 3 of {len(CASES)} planned cells.")
    assert sorted(tmp_path.rglob("*")) == before, "a run that goes on is not disturbed"
    assert [r.case for r in shards.kept_records(tmp_path)] == list(CASES[:3])


# ------------------------------------------------------------------------------------------------- under torchrun

SWEEP = ["--op", "rms", "--tokens", "4,256", "--hidden", "16,64", "--dtype", "fp32", "--mode", "fwd"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "bench.run"]
EVERY_CELL = 4
# Python imports it as it starts. When a rank has written down its first cell, and the other rank too, it kills what
# KILLED names; no clock decides how far the ranks have come by then.
KILLING = """
import os, signal, sys, time
from pathlib import Path

KILLED, RANK = os.environ["KILLED"], os.environ.get("RANK")
if KILLED == f"rank {RANK}" or KILLED == "torchrun" and RANK == "1":
    from bench.results import records as results

    append, victim = results.append, os.getpid() if RANK in KILLED else os.getppid()

    def killing(path, record):
        append(path, record)
        other = path.parent.parent / f"rank{1 - int(RANK)}" / path.name
        while not (other.exists() and other.read_text()):
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)
        while os.getppid() == victim:
            time.sleep(0.01)

    results.append = killing
"""


def started(*arguments, **more):
    variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}
    done = subprocess.run(
        [*TORCHRUN, *arguments], cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=LIMIT_S,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.chance
@pytest.mark.parametrize("killed", ["rank 1", "rank 0", "torchrun"])
def test_what_a_kill_leaves_is_told_and_resume_measures_the_rest(tmp_path, killed):
    folder = tmp_path / "run"
    (tmp_path / "sitecustomize.py").write_text(KILLING)
    places = os.pathsep.join((str(tmp_path), str(ROOT)))
    status, output = started(*SWEEP, "--providers", "torch", "--out", str(folder), PYTHONPATH=places, KILLED=killed)
    assert status != 0
    run, described = data.load(folder), environment.read(folder)
    planned = cases(tokens=(4, 256), hidden=(16, 64), modes=("fwd",))
    missing = {case.label for case in planned} - {r.case.label for r in run.records}
    assert {r.rank for r in run.records} == {0, 1} and missing, output
    assert not described["complete"]
    if killed == "rank 0":  # who would say it; reports and comparisons do then
        assert described["stopped_by"] == "" and (folder / SHARDS).exists()
        assert trust.completeness(run)[1].endswith(f"{len(run.records)} of {EVERY_CELL} planned cells.")
    else:
        assert described["stopped_by"] == {"rank 1": "SIGTERM", "torchrun": "the loss of torchrun"}[killed], output
        assert f"{len(missing)} of {EVERY_CELL} cells are missing: " in output
        assert all(f"{label} torch" in output for label in missing)

    status, output = started("--resume", str(folder), "--in-process")
    described = environment.read(folder)
    assert status == 0 and described["complete"] and not any("missing" in note for note in described["notes"]), output
    records = list(results.read(folder / results.RECORDS))
    assert [r.status for r in records] == ["ok"] * EVERY_CELL and len({r.key for r in records}) == EVERY_CELL
    assert [device["rank"] for device in described["devices"]] == [0, 1]
    assert described["agreement"] is None or described["agreement"]["ranks"] == [0, 1]
    assert "on 2 ranks: the same errors, no times are compared without a GPU" in output
    assert (folder / "report.html").exists()
