"""Runs steps under time limits and packs what they leave into one small archive, for bench.first_gpu.

Imports only Python's own library: a broken PyTorch or Triton must not keep a step from being reported.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import writing

ARCHIVE, SUMMARY = "evidence.zip", "summary.txt"
ARCHIVE_BYTES = 15 << 20
SUMMARY_LINES = 40
# The beginning and the end of a log that are archived, each.
_LOG_BYTES = 1 << 19
# A step that leaves less than this free on the disk, or writes more than that, is stopped, and its large files deleted.
LEAST_FREE_BYTES, MOST_BYTES = 512 << 20, 8 << 30
_LARGE_BYTES = 4 << 20
# Reserved on the disk, so that an archive can be written even when something else has filled it.
_RESERVE_BYTES = 2 * ARCHIVE_BYTES
_LOOK_S = 0.2
_CELLS, _FAILURES, _WIDTH = 5, 8, 160
# The keys of a record that tell its case from every other one.
_CASE = ("op", "axes", "dtype", "layout", "mode", "eps", "inputs", "offset")


@dataclass(frozen=True)
class Step:
    """A command under a time limit.

    In the arguments {folder} is the step's own folder, {scratch} one that all share and that is not archived, and
    {seconds} the step's limit less what it takes to write a report.
    """

    name: str
    seconds: float  # that it may take
    command: tuple[str, ...]
    least: float = 10.0  # seconds, below which it is of no use
    expected: str = ""  # what its last line must contain


@dataclass(frozen=True)
class StepResult:
    """The end of a step: `fault` is empty where it succeeded; `said` is the last line that it printed."""

    step: str
    fault: str
    seconds: float
    said: str = ""

    def __str__(self) -> str:
        told = "; ".join(part for part in (self.fault, self.said) if part)
        return f"{'FAILED' if self.fault else 'ok':7}{self.step:13}{self.seconds:5.0f} s  {told}"[:_WIDTH]


class Evidence:
    """An archive and a summary in a folder; steps work in another folder, which is deleted at the end.

    Raises OSError where the folder cannot be made or written.
    """

    def __init__(self, folder: Path, title: str = "") -> None:
        self.folder, self.results, self._title = folder, list[StepResult](), title
        folder.mkdir(parents=True, exist_ok=True)
        self._reserve = folder / "reserve"
        self._hold_back()
        # A short path: sockets of multiprocessing lie under it, whose names have 107 characters at most.
        self._work = Path(tempfile.mkdtemp(prefix="gpu-"))
        self.steps, self.scratch = self._work / "steps", self._work / "scratch"
        self.scratch.mkdir()
        self.write()

    @property
    def succeeded(self) -> bool:
        return not any(result.fault for result in self.results)

    def close(self) -> None:
        """Deletes everything but the archive and the summary."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._reserve.unlink(missing_ok=True)

    def run(self, step: Step, seconds: float, environment: Mapping[str, str], root: Path) -> None:
        """Runs a step for at most `seconds`, and writes the archive however it ends."""
        began = time.monotonic()
        place = self.steps / re.sub("[^a-z0-9]+", "-", step.name)
        fault, said = "no time was left", ""
        if seconds >= step.least:
            try:
                place.mkdir(parents=True, exist_ok=True)
                fault = self._run(step, seconds, place, environment, root)
            except OSError as error:
                fault = f"it could not be started: {error}"
            # The report's line is no help: it names a folder that will be gone.
            said = next((line for line in reversed(_lines(place / "log")) if not line.startswith("report: ")), "")
            if not fault and step.expected not in said:
                fault = f"nothing {step.expected}"
        self.results.append(StepResult(step.name, fault, time.monotonic() - began, said))
        self.write()

    def write(self) -> None:
        """Replaces summary and archive, each as a whole; makes room for them where the disk is full."""
        if not self._written():
            self._delete_large()
            self._reserve.unlink(missing_ok=True)
            self._written()
        self._hold_back()

    def _written(self) -> bool:
        with suppress(OSError):
            writing.write(self.folder / SUMMARY, self.summarize())
            with writing.replacing(self.folder / ARCHIVE) as part:
                part.write_bytes(self._archive())
            return True
        return False

    def summarize(self) -> str:
        """Returns at most SUMMARY_LINES lines: the steps, the tests that failed, the fastest and slowest cells."""
        held = sum(not result.fault for result in self.results)
        lines = [self._title] if self._title else []
        lines += [f"{held} of {len(self.results)} steps succeeded", *map(str, self.results)]
        logs = sorted(self.steps.glob("*/log"))
        # The tests that failed, as pytest lists them, and the errors of the commands.
        failure = re.compile(r"(FAILED|ERROR) tests/|\S+: error: ")
        lines += [f"  {line}"[:_WIDTH] for log in logs for line in _lines(log) if failure.match(line)][:_FAILURES]
        cells = SUMMARY_LINES - len(lines)
        lines += _cells(sorted(self.steps.glob("*/run/records.jsonl")), cells)
        return "\n".join(lines[:SUMMARY_LINES]) + "\n"

    def _run(self, step: Step, seconds: float, place: Path, environment: Mapping[str, str], root: Path) -> str:
        known = {"folder": str(place), "scratch": str(self.scratch), "seconds": f"{max(seconds - 15, 5):.0f}"}
        # Not format(): some arguments are programs, with braces of their own.
        command = [re.sub(r"\{(\w+)\}", lambda m: known.get(m[1], m[0]), argument) for argument in step.command]
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
            try:
                fault = self._watched(process, time.monotonic() + seconds)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started
                process.wait()
        if fault == "disk":
            self._delete_large()
            return "stopped: it filled the disk"
        if fault:
            return f"stopped after {seconds:.0f} s"
        code = process.returncode
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"exit status {code}" if code else ""

    def _watched(self, process: subprocess.Popen[bytes], end: float) -> str:
        """Waits for the process; returns "time" or "disk" where it has to be stopped."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)
                return ""
            if time.monotonic() >= end:
                return "time"
            free = min(shutil.disk_usage(folder).free for folder in (self.folder, self._work))
            if free < LEAST_FREE_BYTES or _size(self._work) > MOST_BYTES:
                return "disk"

    def _archive(self) -> bytes:
        """Packs the steps' folders, the smallest files first as far as they fit, and a list of what does not."""
        packed, left_out = io.BytesIO(), []
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(SUMMARY, self.summarize())
            for path in sorted(_files(self.steps), key=lambda path: (path.name != "log", path.stat().st_size)):
                name, content = str(path.relative_to(self._work)), path.read_bytes()
                if path.name == "log" and len(content) > 2 * _LOG_BYTES:
                    content = content[:_LOG_BYTES] + b"\n... left out ...\n" + content[-_LOG_BYTES:]
                alone = io.BytesIO()
                with zipfile.ZipFile(alone, "w", zipfile.ZIP_DEFLATED) as one:
                    one.writestr(name, content)
                # The directory of an archive comes last, and grows with each name.
                if packed.tell() + len(alone.getvalue()) + 256 * (len(archive.namelist()) + 2) > ARCHIVE_BYTES:
                    left_out.append(name)
                    continue
                archive.writestr(name, content)
            if left_out:
                archive.writestr("left_out.txt", "\n".join(left_out[:1000]) + "\n")
        return packed.getvalue()

    def _delete_large(self) -> None:
        """Deletes what is not archived, and the large files of the steps."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        with suppress(OSError):
            self.scratch.mkdir(parents=True, exist_ok=True)
        for path in _files(self.steps):
            with suppress(OSError):
                if path.stat().st_size > _LARGE_BYTES:
                    path.unlink()

    def _hold_back(self) -> None:
        with suppress(OSError), self._reserve.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, min(_RESERVE_BYTES, MOST_BYTES // 4))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _size(folder: Path) -> int:
    total = 0
    for path in _files(folder):
        with suppress(OSError):  # gone since it was listed
            total += path.stat().st_size
    return total


def _lines(log: Path) -> list[str]:
    with suppress(OSError):
        return [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return []


def _cells(files: Iterable[Path], most: int) -> list[str]:
    """Returns the fastest and the slowest cells of normlib beside the best peer's, and how many ended in each way."""
    records: list[dict[str, Any]] = []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # cut short when its writer was stopped
                records.append(json.loads(line))
    ours = [record for record in records if record["provider"] == "normlib"]
    ended = Counter(record["status"] for record in ours)
    lines = [f"normlib's cells: {', '.join(f'{ended[status]} {status}' for status in sorted(ended)) or 'none'}"]
    timed = [r for r in records if r["status"] == "ok" and r["clock"] == "cuda_event" and r["latency_us"]]
    compared = []
    for mine in timed:
        peers = [r for r in timed if r["provider"] != "normlib" and all(r[key] == mine[key] for key in _CASE)]
        if mine["provider"] == "normlib" and peers:
            best = min(peers, key=lambda record: float(record["latency_us"]))
            compared.append((best["latency_us"] / mine["latency_us"], mine, best))
    compared.sort(key=lambda found: -found[0])
    shown = min(_CELLS, max(most - 3, 0) // 2)
    for title, chosen in (("fastest", compared[:shown]), ("slowest", compared[max(shown, len(compared) - shown) :])):
        if chosen:
            lines.append(f"{title} beside the best peer (peer's time / normlib's):")
        for ratio, mine, best in chosen:
            label = (mine["op"], "x".join(map(str, mine["shape"])), mine["dtype"], mine["layout"], mine["mode"])
            us = f"{mine['latency_us']:.1f} us, {best['provider']} {best['latency_us']:.1f} us"
            lines.append(f"  {ratio:6.2f}x  {' '.join(label)}: {us}")
    return lines[:most]
