"""Runs a sweep over many devices: `torchrun --nproc-per-node=8 -m bench.run ...`, a rank each, one report.

Every rank plans the same cells and measures its share of them, with its own worker and files. Rank 0 compares the
conditions, tells which cells are left, waits, and merges. Ranks may be on several machines: each writes to the run's
folder if it sees it, and else sends its files to rank 0 at its end. When a rank dies, torchrun ends the others, and
rank 0 merges what there is and says what is missing, for --resume to measure. Where rank 0 itself is killed, --resume
merges, and reports and comparisons read what the ranks have left.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.distributed import DistError

from bench import writing
from bench.cases.case import Case
from bench.cli import BadArgument
from bench.measure import environment, runner
from bench.measure.progress import LineDisplay, ProgressDisplay
from bench.measure.runner import RunOutcome, RunPlan
from bench.ranks import gathering
from bench.ranks.team import Team, join
from bench.results import records as results
from bench.results import samples, tables
from bench.results.records import RECORDS, SHARDS, TRACES, Record

__all__ = ["assist", "deal", "join", "kept_records", "lead"]

# How long rank 0 waits for the others where all are told to end: the same signal kills their workers, so that they have
# only files to write, and torchrun's SIGKILL comes after 30 s.
_LAST_WORDS_S = 3.0
# How many of the missing cells are named; --resume --list has them all.
_MOST_NAMED = 10
# What a rank sends that does not see the run's folder.
_FILES = (RECORDS, TRACES, samples.FILE, environment.FILE, f"{gathering.CHECK}/{RECORDS}")


def deal(
    cases: Sequence[Case], providers: Collection[str], device: torch.device, ranks: int
) -> tuple[tuple[Case, ...], ...]:
    """Divides cases among ranks; those of one problem, which share inputs and reference, stay together, in order.

    The longest problem that is left goes to the rank with the least to do, which takes at most 4/3 of the best possible
    time (Graham, "Bounds on multiprocessing timing anomalies", 1969). The order of cases breaks ties, so that every
    rank finds the same division.
    """
    from bench.measure.cost import expected_seconds  # with all that compiles ahead, which few runs need

    problems: dict[Case, float] = {}
    for case in cases:
        problems[case.problem] = problems.get(case.problem, 0.0) + expected_seconds(case, providers, device)
    loads = [0.0] * ranks
    owner: dict[Case, int] = {}
    for problem, seconds in sorted(problems.items(), key=lambda item: -item[1]):
        owner[problem] = min(range(ranks), key=lambda rank: loads[rank])
        loads[owner[problem]] += seconds
    return tuple(tuple(case for case in cases if owner[case.problem] == rank) for rank in range(ranks))


def kept_records(folder: Path) -> list[Record]:
    """Returns the records of earlier sittings that still count, those that ranks left unmerged included."""
    if (folder / SHARDS).exists():
        gathering.merge(folder)
    return runner.kept_records(folder)


def lead(
    team: Team, plan: RunPlan, folder: Path, described: dict[str, Any], kept: list[Record], display: ProgressDisplay
) -> RunOutcome:
    """Does rank 0's part of a run, as `runner.run` does, while the others measure too.

    Whatever ends the measuring, a signal that torchrun sends or an error, what the ranks have measured is merged, and
    the folder and `described["said"]` say what is missing; the caller enters `team.signals` and leaves it after telling
    that. Raises BadArgument, which the others are told, where a rank does not come or is not like this one, and any
    other error that no signal explains.
    """
    fault = None
    try:
        with team.signals.interrupting():
            stopped_by = _led(team, plan, folder, described, [*kept], display)
    except BadArgument:
        raise
    except KeyboardInterrupt:
        stopped_by = "interrupt"
    except Exception as error:  # an error may be all that is seen of a signal: it has ended this rank's worker first
        if not team.signals.near():
            stopped_by = "the loss of torchrun" if isinstance(error, DistError) else "error"
            fault = None if isinstance(error, DistError) else error
    if told := team.signals.settle():
        stopped_by = told
        with suppress(DistError):  # torchrun has told the others too, which still write down what has ended
            team.wait_for("done", range(1, team.size), _LAST_WORDS_S, _LAST_WORDS_S)
            _take(team, folder)
    outcome = _finish(plan, folder, described, stopped_by, team.size)
    if fault is not None:
        raise fault
    return outcome


def assist(team: Team, plan: RunPlan, described: dict[str, Any]) -> int:
    """Does any other rank's part; returns its exit status."""
    with team.signals:
        try:
            with team.signals.interrupting():
                return _assisted(team, plan, described)
        except BadArgument:
            raise
        except (KeyboardInterrupt, DistError):  # torchrun ends this rank, or is itself lost
            return 130
        except Exception:
            if team.signals.near():
                return 130
            raise


def _led(
    team: Team, plan: RunPlan, folder: Path, described: dict[str, Any], kept: list[Record], display: ProgressDisplay
) -> str:
    """Returns what stopped the measuring, if anything."""
    try:
        _alike(team, plan, described)
    except BadArgument as error:
        team.tell("word", {"refused": str(error)})
        raise
    done = {(record.case, record.provider) for record in kept}
    left = [i for i, case in enumerate(plan.cases) if any((case, name) not in done for name in plan.providers)]
    results.rewrite(folder / RECORDS, kept)
    unfinished = {"finished": None, "complete": False, "stopped_by": "", "cells_planned": plan.cells}
    environment.write(folder, {**described, **unfinished})
    token = uuid.uuid4().hex
    (folder / SHARDS).mkdir(exist_ok=True)
    (folder / SHARDS / token).touch()
    team.tell("word", {"folder": str(folder.resolve()), "token": token, "left": left})
    mine = gathering.rank_folder(folder, 0)
    return _measure(team, plan, left, mine, described, display) or _wait(team, plan, folder)


def _assisted(team: Team, plan: RunPlan, described: dict[str, Any]) -> int:
    team.tell(f"here/{team.rank}", {"described": described, "plan": _fingerprint(plan)})
    word = team.hear("word", "rank 0")
    if "refused" in word:  # rank 0 says so, once for all
        return 2
    shared = (Path(word["folder"]) / SHARDS / word["token"]).exists()
    folder = Path(word["folder"]) if shared else Path(tempfile.mkdtemp())
    mine = gathering.rank_folder(folder, team.rank)
    stopped_by = _measure(team, plan, word["left"], mine, described, _silent())
    if not shared:
        _send(team, mine)
        shutil.rmtree(folder, ignore_errors=True)
    team.tell(f"done/{team.rank}", stopped_by)
    return 0


def _alike(team: Team, plan: RunPlan, described: Mapping[str, Any]) -> None:
    """Raises BadArgument unless every rank comes and measures the same cells under the same conditions."""
    for rank in range(1, team.size):
        theirs = team.hear(f"here/{rank}", f"rank {rank}")
        names = [*plan.providers]
        changed = environment.differences(described, theirs["described"], names)
        if theirs["plan"] != _fingerprint(plan):
            changed.append("its arguments give other cells")
        if changed:
            raise BadArgument("torchrun", f"rank {rank} is not like rank 0: {'; '.join(changed)}")


def _fingerprint(plan: RunPlan) -> str:
    said = json.dumps([[case.label for case in plan.cases], [*plan.providers], plan.seed, plan.baseline])
    return hashlib.sha256(said.encode()).hexdigest()


def _measure(
    team: Team, plan: RunPlan, left: list[int], place: Path, described: Mapping[str, Any], display: ProgressDisplay
) -> str:
    """Measures this rank's share of what is left, then the case that all measure; returns what stopped it, if any."""
    place.mkdir(parents=True, exist_ok=True)
    cases = [plan.cases[i] for i in left]
    share = deal(cases, plan.providers, plan.device, team.size)[team.rank]
    alone = {**described, "copy_gbps": None}  # each device has its own
    telling = _Pulse(team, display)
    stopped_by = runner.run(replace(plan, cases=share), place, alone, [], telling).stopped_by
    if not stopped_by and cases:
        from bench.measure.cost import expected_seconds

        common = sorted(cases, key=lambda case: expected_seconds(case, plan.providers, plan.device))[len(cases) // 2]
        (place / gathering.CHECK).mkdir(exist_ok=True)
        copied = {**described, "copy_gbps": environment.read(place)["copy_gbps"]}
        quiet = _Pulse(team, _silent())
        stopped_by = runner.run(replace(plan, cases=(common,)), place / gathering.CHECK, copied, [], quiet).stopped_by
    return stopped_by


def _wait(team: Team, plan: RunPlan, folder: Path) -> str:
    """Waits until every rank has done its share; returns what ended that early, if anything."""
    others = range(1, team.size)
    # A cell may be silent for its timeout, and is then stopped and said to be; a rank that is silent longer is lost.
    missing = team.wait_for("done", others, 2 * plan.cell_timeout)
    _take(team, folder)
    endings = [team.hear(f"done/{rank}", f"rank {rank}") for rank in others if rank not in missing]
    return "a lost rank" if missing else next((ending for ending in endings if ending), "")


def _take(team: Team, folder: Path) -> None:
    """Writes the files that ranks have sent that do not see the folder."""
    for rank in range(1, team.size):
        place = gathering.rank_folder(folder, rank)
        for name in _FILES:
            content = team.fetch(f"file/{rank}/{name}")
            if content is not None:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                with writing.replacing(place / name) as part:
                    part.write_bytes(content)


def _send(team: Team, place: Path) -> None:
    for name in _FILES:
        if (place / name).exists():
            team.send(f"file/{team.rank}/{name}", (place / name).read_bytes())


def _finish(plan: RunPlan, folder: Path, described: dict[str, Any], stopped_by: str, ranks: int) -> RunOutcome:
    """Merges, describes what is missing and whether devices agree, and writes the run's files."""
    devices = [gathering.device_of(folder, rank) for rank in range(ranks)]
    agreement = gathering.agreement(folder)
    cells: list[tuple[Case, str]] = [(case, name) for case in plan.cases for name in plan.providers]
    records = gathering.merge(folder, cells)
    have = {(record.case, record.provider) for record in records if record.status != "skipped"}
    missing = [f"{case.label} {name}" for case, name in cells if (case, name) not in have]
    if missing and not stopped_by:
        stopped_by = "a lost rank"
    said = gathering.said(agreement) if agreement else []
    if missing:
        named = ", ".join(missing[:_MOST_NAMED]) + (", ..." if len(missing) > _MOST_NAMED else "")
        said.append(f"{len(missing)} of {len(cells)} cells are missing: {named}")
    described |= {
        "notes": [*described["notes"], *said],
        "said": said,  # of this sitting, and no note of a later one
        "devices": devices,
        "agreement": agreement,
        "copy_gbps": devices[0].get("copy_gbps"),
        "conditions": devices[0].get("conditions"),
        "finished": environment.now(),
        "complete": not stopped_by,
        "stopped_by": stopped_by,
        "cells_planned": plan.cells,
    }
    environment.write(folder, described)
    tables.write(folder, records)
    return RunOutcome(records, stopped_by)


def _silent() -> ProgressDisplay:
    """Returns a display that shows nothing: rank 0 shows its own share, and at the end everything."""
    return LineDisplay(Console(quiet=True))


class _Pulse:
    """Another display, and a sign of life in the store with every cell."""

    def __init__(self, team: Team, shown: ProgressDisplay) -> None:
        self._team, self._beats = team, 0
        self.start, self._running, self._finished, self.stop = shown.start, shown.running, shown.finished, shown.stop

    def running(self, case: Case, provider: str) -> None:
        self._beat()
        self._running(case, provider)

    def finished(self, record: Record) -> None:
        self._beat()
        self._finished(record)

    def _beat(self) -> None:
        self._team.signals.check()
        self._beats += 1
        self._team.tell(f"pulse/{self._team.rank}", self._beats)
