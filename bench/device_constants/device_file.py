"""Reads and writes the file of one device, kernels/tuned/NAME.json: what was measured on it, when and with what.

- `values`: by plans, what plans choose there in place of the defaults (`python -m bench.tune`);
- `gains`: by plans, what that gained, and the versions that it was measured with;
- `constants`: by figure, what the device needs for memory, launches and barriers (`python -m bench.device_constants`).

Each program writes its own part and keeps the others. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from bench import writing
from bench.cli import BadArgument

# The part of an environment that stands beside each figure.
_VERSIONS = ("torch", "triton", "cuda", "git_commit", "git_dirty")


def versions(described: Mapping[str, Any], measured: str) -> dict[str, Any]:
    """Returns what stands beside a figure: when it was measured, and with which versions."""
    return {"measured": measured, **{key: described[key] for key in _VERSIONS}}


def read(file: Path) -> dict[str, Any]:
    """Returns the file's content, {} where there is none; raises ValueError where it is not one JSON object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} is not a JSON object")
    return found


def update(file: Path, device_name: str, **parts: Mapping[str, Any]) -> None:
    """Replaces these parts and keeps the others; a reader sees the old file or the new one, never half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {**read(file), "device_name": device_name, **parts}
    writing.write(file, json.dumps(whole, indent=1) + "\n")


def choose(out: Path | None, device_name: str) -> Path:
    """Returns `out`, or the file where plans look for this device, and makes its folder.

    Raises BadArgument where the file is another device's, not a device's at all, or not writable.
    """
    from normlib.kernels import plan  # with normlib, and so with torch

    file = out or plan.tuning_file(device_name)
    try:
        found = read(file)
    except (OSError, ValueError) as error:
        raise BadArgument("--out", f"{str(file)!r} is not a device's file: {error}") from error
    if found.get("device_name", device_name) != device_name:
        raise BadArgument("--out", f"{str(file)!r} is the file of {found['device_name']}, and this is {device_name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise BadArgument("--out", f"{str(file)!r} cannot be written: {error.strerror}") from error
    return file
