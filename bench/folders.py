"""The folder that a run is written to, and one that is to be continued."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.cli import BadArgument

REPORTS = Path("reports")
ENVIRONMENT = "environment.json"
# Any of them says that something was written here before.
_LEFT_BY_A_RUN = (ENVIRONMENT, "records.jsonl", "report.html")


def stored(folder: str, option: str = "--resume") -> dict[str, Any]:
    """Returns the environment.json of a run or study; raises BadArgument, which names the option, if there is none."""
    if Path(folder).is_file():
        raise BadArgument(option, f"{folder!r} is a file; give the folder of a run")
    try:
        found = json.loads((Path(folder) / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if not isinstance(found, dict) or not isinstance(found.get("arguments"), dict):
        raise BadArgument(option, f"{folder!r} holds no run")
    return found


def new(out: str | None, name: str) -> Path:
    """Makes and returns a run's folder, the first thing that is written at all: --out, or reports/TIME-NAME."""
    if out is None:
        stem = REPORTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
        numbered = (stem if i == 1 else stem.with_name(f"{stem.name}-{i}") for i in range(1, 1000))
        folder = next(folder for folder in numbered if not folder.exists())
    elif not out.strip():
        raise BadArgument("--out", "empty; give a folder")
    else:
        folder = Path(out)
    if folder.is_file():
        raise BadArgument("--out", f"{str(folder)!r} is a file; name a folder")
    if any((folder / file).exists() for file in _LEFT_BY_A_RUN):
        raise BadArgument("--out", f"{out!r} already holds a run; continue it with --resume, or name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        problem = f"{str(folder)!r} cannot be written: {error.strerror}"
        raise BadArgument("--out" if out else str(folder), problem) from error
    return folder
