"""Describes the machine, the versions and the clocks of a run: environment.json, beside the run's records.

It is published with a report, so it holds no host name, no user name and no absolute path.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import torch

from bench import writing
from bench.measure import telemetry
from bench.measure.telemetry import output_of

if TYPE_CHECKING:
    from bench.measure.providers import Provider

SCHEMA = 1
FILE = "environment.json"
_ROOT = Path(__file__).resolve().parents[2]
# What must be the same for the cells of two sittings to stand in one table. Clocks and notes may differ.
_LASTING = [
    "schema",
    "device",
    "device_name",
    "interpreted",
    "python",
    "torch",
    "triton",
    "cuda",
    "cudnn",
    "git_commit",
    "ranks",
]


def collect(device: torch.device, providers: Mapping[str, Provider]) -> dict[str, Any]:
    """Describes the machine, the versions and the providers, as keys of environment.json."""
    gpu = telemetry.describe(device) if device.type == "cuda" else None
    cpu = _cpu()
    return {
        "schema": SCHEMA,
        "interpreted": interpreting(),
        "device": device.type,
        "device_name": gpu["name"] if gpu else cpu,
        "gpu": gpu,
        "cpu": cpu,
        "os": " ".join((platform.system(), platform.release(), platform.machine())),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _package("triton"),
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        **_git(_ROOT),
        "providers": {name: _provider(provider, device) for name, provider in providers.items()},
    }


def conditions(device: torch.device) -> dict[str, Any]:
    """Describes what may change during a run: clocks, heat and limits of a GPU, the host's load, the source."""
    return {"taken": now(), **telemetry.clocks(device), "load_average": os.getloadavg()[0], **_git(_ROOT)}


def interpreting() -> bool:
    """Returns whether the environment asks for Triton's interpreter, by the words that Triton itself takes as yes."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def now() -> str:
    """Returns the time as ISO 8601, UTC, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command(arguments: Sequence[str], program: str = "bench.run") -> str:
    """Returns the command as typed, except that only the last part of an absolute path is shown."""
    return shlex.join(["python", "-m", program, *map(_without_folders, arguments)])


def differences(old: Mapping[str, Any], new: Mapping[str, Any], providers: Sequence[str]) -> list[str]:
    """Returns what keeps a run of these providers from being continued here, one line each."""
    pairs = [(key.replace("_", " "), old.get(key), new.get(key)) for key in _LASTING]
    for name in providers:
        was, is_now = (described.get("providers", {}).get(name, {}) for described in (old, new))
        pairs += [(f"{name}'s {key}", was.get(key), is_now.get(key)) for key in ("version", "unavailable")]
    return [f"{name} was {was!r}, is {is_now!r}" for name, was, is_now in pairs if was != is_now]


def write(folder: Path, environment: Mapping[str, Any]) -> None:
    """Replaces the folder's environment.json as a whole, so that a reader never sees half of it."""
    writing.write(folder / FILE, json.dumps(environment, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """Reads the folder's environment.json; raises OSError where there is none, ValueError for other than an object."""
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{FILE} is not a JSON object")
    return found


def _without_folders(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + (PurePath(value).name if PurePath(value).is_absolute() else value)


def _provider(provider: Provider, device: torch.device) -> dict[str, str]:
    reason = provider.unavailable(device) or ""
    try:
        return {"version": provider.version(), "unavailable": reason}
    except (ImportError, PackageNotFoundError):
        return {"version": "", "unavailable": reason or "its package is not installed"}


def _package(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        model = None
    return model[1].strip() if model else platform.processor() or platform.machine()


def _git(root: Path) -> dict[str, Any]:
    """Returns the commit, and whether the tree differs from it; None for both where the project is not a checkout."""
    git = ["git", "-C", str(root)]
    # An archive unpacked inside somebody else's checkout must not be taken for that checkout.
    if output_of([*git, "rev-parse", "--show-cdup"]) != "":
        return {"git_commit": None, "git_dirty": None}
    status = output_of([*git, "status", "--porcelain"])
    return {"git_commit": output_of([*git, "rev-parse", "HEAD"]), "git_dirty": None if status is None else status != ""}
