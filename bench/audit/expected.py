"""The time that is expected of a pass on a device whose constants have been measured; the time itself is not measured.

It is a sum: bytes that reach device memory behind the model's cache, at the bandwidth of the largest copy that was
measured there; every launch at what one more launch took; and every wait of a program for others at what one more wait
took. Nothing overlaps in it and nothing is computed: where waits and loads overlap it is too much, and where arithmetic
takes longer than the bytes too little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from bench.cli import BadArgument
from bench.device_constants import device_file
from bench.measure.launches import RecordedPass
from normlib.kernels import plan
from normlib.kernels.traffic import Traffic

# Devices of each target, as PyTorch names them up to what their memory adds ("NVIDIA H100 80GB HBM3"); the first that
# has a file is the one.
DEVICES: Mapping[str, tuple[str, ...]] = {
    "sm_80": ("NVIDIA A100",),
    "sm_90": ("NVIDIA H200", "NVIDIA H100"),
    "sm_100": ("NVIDIA B200",),
    "gfx942": ("AMD Instinct MI300X",),
}


@dataclass(frozen=True)
class Constants:
    """The measured constants of a device; `made` has the date and the versions of each, as in the device's file."""

    target: str
    device: str
    copy_gbps: float
    launch_us: float
    barrier_us: float | None
    made: Mapping[str, Mapping[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Returns a line of records.jsonl."""
        return {"record": "constants", **asdict(self), "problems": []}


@dataclass(frozen=True)
class ExpectedPassTime:
    """Microseconds of one pass on a device, and of what they are the sum."""

    device: str
    us: float
    memory_us: float
    launches_us: float
    barriers_us: float


def constants_of(target: str) -> Constants | None:
    """Returns the constants of the target's device, None where no file has them; raises BadArgument of a broken one."""
    for device in DEVICES[target]:
        file = plan.tuning_file(device)
        for found in sorted((file, *file.parent.glob(f"{file.stem}-*.json")), key=lambda path: len(path.name)):
            try:
                constants = _constants(target, device_file.read(found))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                problem = f"is not a device's file: {type(error).__name__}: {error}"
                raise BadArgument(f"kernels/tuned/{found.name}", problem) from error
            if constants is not None:
                return constants
    return None


def _constants(target: str, found: Mapping[str, Any]) -> Constants | None:
    known = found.get("constants", {})
    if not {"copy", "launch"} <= known.keys():
        return None
    copies = known["copy"]["gbps"]
    return Constants(
        target,
        found["device_name"],
        float(copies[max(copies, key=int)]),  # what a copy takes besides its bytes is least in it
        float(known["launch"]["stream_us"]),
        float(known["barrier"]["us"]) if "barrier" in known else None,
        {figure: known[figure]["with"] for figure in ("copy", "launch", "barrier") if figure in known},
    )


def expected(constants: Constants, device_bytes: float, launches: int, waits: int) -> ExpectedPassTime | None:
    """Returns what a pass is expected to take; None where it has barriers and what those take is not known."""
    if waits and constants.barrier_us is None:
        return None
    parts = (
        device_bytes / constants.copy_gbps / 1e3,
        launches * constants.launch_us,
        waits * (constants.barrier_us or 0.0),
    )
    return ExpectedPassTime(constants.device, *(round(us, 3) for us in (sum(parts), *parts)))


def waits(one: RecordedPass, launch: Traffic, shape: tuple[int, ...]) -> int:
    """Returns how many times one program of a launch waits for others, one wait after another."""
    if not launch.waits:
        return 0
    return plan.cdiv(prod(shape[:-1]), one.plan.programs)  # once a row
