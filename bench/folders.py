"""The folder that a run is written to, and one that is to be continued."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.cli import BadArgument
from bench.measure import environment

REPORTS = Path("reports")
# Any of them says that something was written here before.
_LEFT_BY_A_RUN = (environment.FILE, "records.jsonl", "report.html")


def stored(folder: str, option: str = "--resume") -> dict[str, Any]:
    """The environment.json of the run in this folder; BadArgument, which names the option, where there is none."""
    try:
        found = environment.read(Path(folder))
    except (OSError, ValueError):
        found = {}
    if not isinstance(found.get("arguments"), dict):
        raise BadArgument(option, f"{folder!r} holds no run")
    return found


def new(out: str | None, name: str) -> Path:
    """Makes a run's folder, the first thing that is written at all: --out, or reports/TIME-NAME."""
    if out is None:
        stem = REPORTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
        folder = next(
            f for i in range(1, 1000) if not (f := stem if i == 1 else stem.with_name(f"{stem.name}-{i}")).exists()
        )
    elif not out.strip():
        raise BadArgument("--out", "empty; give a folder")
    else:
        folder = Path(out)
    if any((folder / file).exists() for file in _LEFT_BY_A_RUN):
        raise BadArgument("--out", f"{out!r} already holds a run; continue it with --resume, or name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise BadArgument(
            "--out" if out else str(folder), f"{str(folder)!r} cannot be written: {error.strerror}"
        ) from error
    return folder
