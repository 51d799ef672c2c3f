"""Differences between the environments of two runs. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

# Those that change times the most come first. The commit differs where code is compared, and not machines.
_FACTS = (
    ("device",), ("device_name",), ("interpreted",), ("gpu", "driver"), ("gpu", "clocks", "power.limit"),
    ("gpu", "clocks", "clocks.max.sm"), ("gpu", "clocks", "clocks.max.mem"), ("gpu", "clocks", "clocks.sm"),
    ("gpu", "clocks", "clocks.mem"), ("cuda",), ("cudnn",), ("torch",), ("triton",), ("python",), ("os",), ("cpu",),
    ("git_commit",), ("git_dirty",), ("schema",), ("seed",), ("baseline",),
)  # fmt: skip
# Facts that decide every bit of a result.
_BITS = ("device_name", "interpreted", "cuda", "cudnn", "torch", "triton", "git_commit", "git_dirty", "seed")


def differences(a: Mapping[str, Any], b: Mapping[str, Any], providers: Sequence[str]) -> list[str]:
    """Returns a line for each fact that differs, and each provider's version: `torch was '2.12', is '2.13'`."""
    facts = [(" ".join(path).replace("_", " "), _at(a, path), _at(b, path)) for path in _FACTS]
    for name in providers:
        path = ("providers", name, "version")
        facts.append((f"{name}'s version", _at(a, path), _at(b, path)))
    return [f"{name} was {_told(was)}, is {_told(now)}" for name, was, now in facts if was != now]


def same_bits(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Returns whether both must give the same bits: one device, one commit without edits, one seed."""
    return bool(a.get("git_commit")) and not a.get("git_dirty") and all(a.get(key) == b.get(key) for key in _BITS)


def _at(described: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = described
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _told(value: Any) -> str:
    return "not recorded" if value is None else repr(value)
