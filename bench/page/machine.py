"""The environment of a run as rows of text."""

from collections.abc import Mapping
from typing import Any

from bench.page import formatting
from bench.results.numbers import present


def facts(env: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the facts of the page's head, without those that were not recorded."""
    gpu = env["gpu"] if isinstance(env["gpu"], dict) else {}
    commit = str(env["git_commit"] or "")[:12]
    state = "" if env["git_dirty"] is None else "with uncommitted changes" if env["git_dirty"] else "clean"
    rows = [
        ("Device", env["device_name"] or env["device"]),
        ("GPU driver", gpu.get("driver")),
        ("PyTorch", env["torch"]),
        ("Triton", env["triton"]),
        ("CUDA", env["cuda"]),
        ("cuDNN", env["cudnn"]),
        ("Commit", f"{commit} {state}" if commit else None),
        ("Copy bandwidth", f"{formatting.number(env['copy_gbps'])} GB/s" if env["copy_gbps"] else None),
        ("Started", formatting.day(env["started"])),
        ("Finished", formatting.day(env["finished"])),
    ]
    return [(name, str(value)) for name, value in rows if value]


def flat(described: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Returns nested keys joined by blanks, in order, without what is empty or shown elsewhere."""
    rows = []
    for key, value in described.items():
        name = f"{before}{key}".replace("_", " ")
        if not before and key in ("providers", "notes", "conditions"):
            continue
        if isinstance(value, dict):
            rows += flat(value, f"{name} ")
        elif isinstance(value, bool):
            rows.append((name, "yes" if value else "no"))
        elif key.endswith("_bytes") and present(value):
            rows.append((name.removesuffix(" bytes"), formatting.size(value)))
        elif isinstance(value, float):
            rows.append((name, formatting.number(value, 4)))
        elif value not in (None, ""):
            rows.append((name, str(value)))
    return rows
