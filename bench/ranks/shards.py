"""A sweep over many devices: `torchrun --nproc-per-node=8 -m bench.run ...`, a rank each, one report.

Every rank plans the same cells and measures its share of them, with a worker and files of its own; rank 0 compares
conditions before, divides, waits, and merges. Ranks may be on several machines: on a folder that all of them see, each
writes there; where they do not, what a rank has measured comes to rank 0 at its end. When a rank dies, torchrun ends
the others, and rank 0 merges what there is and says what is missing, for --resume to measure. Where rank 0 itself is
killed, --resume merges, and reports and comparisons read what the ranks have left.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed import DistError

from bench.cases.case import Case
from bench.cli import BadArgument
from bench.measure import environment, runner
from bench.measure.cost import expected_seconds
from bench.measure.progress import ProgressDisplay
from bench.measure.runner import RunOutcome, RunPlan
from bench.ranks import gathering
from bench.ranks.dividing import deal
from bench.ranks.team import Team, join
from bench.results import records as results
from bench.results import samples
from bench.results.records import RECORDS, SHARDS, Record

__all__ = ["assist", "join", "kept_records", "lead"]

# How long rank 0 waits for the others where all are told to end: their workers die of the same signal, so that they
# have only files to write, and torchrun's SIGKILL comes after 30 s.
_LAST_WORDS_S = 3.0
# How many of the missing cells are named; --resume --list has them all.
_MOST_NAMED = 10


def kept_records(folder: Path) -> list[Record]:
    """The records of earlier sittings that still count, those that ranks left unmerged included."""
    if (folder / SHARDS).exists():
        gathering.merge(folder)
    return runner.kept_records(folder)


def lead(
    team: Team, plan: RunPlan, folder: Path, described: dict[str, Any], kept: list[Record], display: ProgressDisplay
) -> RunOutcome:
    """Rank 0's part of a run: as `runner.run`, but that the others measure too.

    Whatever ends the measuring, a signal that torchrun sends or an error, what the ranks have measured is merged, and
    the folder and `described["said"]` say what is missing; the caller enters `team.ending` and leaves it once it has
    told that. Raises BadArgument, which the others hear of, where a rank does not come or is not like this one, and any
    other error that no signal explains.
    """
    fault = None
    try:
        with team.ending.interrupting():
            stopped_by = _led(team, plan, folder, described, [*kept], display)
    except BadArgument:
        raise
    except KeyboardInterrupt:
        stopped_by = "interrupt"
    except Exception as error:  # an error may be all that is seen of a signal: it has ended this rank's worker first
        if not team.ending.near():
            stopped_by = "the loss of torchrun" if isinstance(error, DistError) else "error"
            fault = None if isinstance(error, DistError) else error
    if told := team.ending.settle():
        stopped_by = told
        with suppress(DistError):  # torchrun has told the others too, which still write down what has ended
            team.wait_for("done", range(1, team.size), _LAST_WORDS_S, _LAST_WORDS_S)
            _take(team, folder)
    outcome = _finish(plan, folder, described, stopped_by, team.size)
    if fault is not None:
        raise fault
    return outcome


def assist(team: Team, plan: RunPlan, described: dict[str, Any]) -> int:
    """Any other rank's part, and its exit status."""
    with team.ending:
        try:
            with team.ending.interrupting():
                return _assisted(team, plan, described)
        except BadArgument:
            raise
        except (KeyboardInterrupt, DistError):  # torchrun ends this rank, or is itself lost
            return 130
        except Exception:
            if team.ending.near():
                return 130
            raise


def _led(
    team: Team, plan: RunPlan, folder: Path, described: dict[str, Any], kept: list[Record], display: ProgressDisplay
) -> str:
    """What stopped the measuring, if anything."""
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
    stopped_by = _measure(team, plan, word["left"], mine, described, _Silent())
    if not shared:
        _send(team, mine)
        shutil.rmtree(folder, ignore_errors=True)
    team.tell(f"done/{team.rank}", stopped_by)
    return 0


def _alike(team: Team, plan: RunPlan, described: Mapping[str, Any]) -> None:
    """Whether every rank has come, measures the same cells, and does so under the same conditions."""
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
    """This rank's share of what is left, and then the case that every rank measures; what stopped it, if anything."""
    place.mkdir(parents=True, exist_ok=True)
    cases = [plan.cases[i] for i in left]
    share = deal(cases, plan.providers, plan.device, team.size)[team.rank]
    alone = {**described, "copy_gbps": None}  # each device has its own
    telling = _Pulse(team, display)
    stopped_by = runner.run(replace(plan, cases=share), place, alone, [], telling).stopped_by
    if not stopped_by and cases:
        common = sorted(cases, key=lambda case: expected_seconds(case, plan.providers, plan.device))[len(cases) // 2]
        (place / gathering.CHECK).mkdir(exist_ok=True)
        copied = {**described, "copy_gbps": environment.read(place)["copy_gbps"]}
        quiet = _Pulse(team, _Silent())
        stopped_by = runner.run(replace(plan, cases=(common,)), place / gathering.CHECK, copied, [], quiet).stopped_by
    return stopped_by


def _wait(team: Team, plan: RunPlan, folder: Path) -> str:
    """Until every rank has done its share; what ended the waiting before that, if anything."""
    others = range(1, team.size)
    # A cell may be silent for its timeout, and is then stopped and said to be; a rank that is silent longer is lost.
    missing = team.wait_for("done", others, 2 * plan.cell_timeout)
    _take(team, folder)
    endings = [team.hear(f"done/{rank}", f"rank {rank}") for rank in others if rank not in missing]
    return "a lost rank" if missing else next((ending for ending in endings if ending), "")


def _take(team: Team, folder: Path) -> None:
    """Writes down what ranks have sent that do not see the folder."""
    for rank in range(1, team.size):
        place = gathering.rank_folder(folder, rank)
        for name in (*_FILES, f"{gathering.CHECK}/{RECORDS}"):
            content = team.fetch(f"file/{rank}/{name}")
            if content is not None:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)


_FILES = (RECORDS, samples.FILE, environment.FILE)


def _send(team: Team, place: Path) -> None:
    for name in (*_FILES, f"{gathering.CHECK}/{RECORDS}"):
        if (place / name).exists():
            team.send(f"file/{team.rank}/{name}", (place / name).read_bytes())


def _finish(plan: RunPlan, folder: Path, described: dict[str, Any], stopped_by: str, ranks: int) -> RunOutcome:
    """Merges, says what is missing and whether devices agree, and writes the run's files."""
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
    results.to_frame(records).to_csv(folder / runner.TABLE, index=False)
    return RunOutcome(records, stopped_by)


class _Silent:
    """Shows nothing: rank 0 shows its own share, and at the end everything."""

    def start(self, cells: int, done: int) -> None:
        pass

    def running(self, case: Case, provider: str) -> None:
        pass

    def finished(self, record: Record) -> None:
        pass

    def stop(self) -> None:
        pass


class _Pulse(_Silent):
    """Another display, and a sign of life in the store with everything that it is told."""

    def __init__(self, team: Team, shown: ProgressDisplay) -> None:
        self._team, self._shown, self._beats = team, shown, 0

    def start(self, cells: int, done: int) -> None:
        self._shown.start(cells, done)

    def running(self, case: Case, provider: str) -> None:
        self._beat()
        self._shown.running(case, provider)

    def finished(self, record: Record) -> None:
        self._beat()
        self._shown.finished(record)

    def stop(self) -> None:
        self._shown.stop()

    def _beat(self) -> None:
        self._team.ending.check()
        self._beats += 1
        self._team.tell(f"pulse/{self._team.rank}", self._beats)
