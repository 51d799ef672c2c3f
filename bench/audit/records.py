"""The records of an audit: each pass of each call on each target, with its launches and what they were compiled to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from bench.audit.bounds import CLOSE, least_units, once_units, reason
from bench.audit.cache import Programs, expected_units
from bench.audit.calls import Launch
from bench.audit.choices import audited
from bench.audit.compiling import compiling
from bench.audit.expected import Constants, Expected, expected, waits
from bench.audit.limits import LIMITS, resident_programs
from bench.audit.machine_code import MachineCode, inspect
from bench.audit.passes import Declared
from bench.audit.targets import TARGETS
from bench.cases import case
from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.group_norm.plan import GroupNormPlan
from normlib.kernels.traffic import ACTIVATIONS, Traffic

SWEPT = (BatchNormPlan, GroupNormPlan)  # plans whose launches declare their sweeps
WIDE = 128  # bits: the widest load and store that every target has


@dataclass
class Compiled:
    """One kernel as compiled for one target, and the first call that needed it."""

    target: str
    number: int  # of its target
    kernel: str
    launch: str
    num_warps: int
    registers: int  # of a lane
    spill: int  # bytes of stack on NVIDIA, spilled vector registers on AMD
    shared: int  # bytes
    loads: dict[int, int]  # bits -> instructions
    stores: dict[int, int]
    resident: int  # programs that fit on a multiprocessor
    occupancy: float  # their warps, of all that a multiprocessor can hold
    wide: bool  # the activations' runs are multiples of 16 bytes in every call, so that 128 bits are possible
    loads_activations: bool
    stores_activations: bool

    @property
    def load_bits(self) -> int:
        """The widest global load."""
        return max(self.loads, default=0)

    @property
    def store_bits(self) -> int:
        """The widest global store."""
        return max(self.stores, default=0)

    @property
    def breaks(self) -> dict[str, str]:
        """What must not be, in a word and in a sentence."""
        found = {"spills": f"{self.kernel} spills {self.spill}"} if self.spill else {}
        for word, moves, bits in (
            ("loads", self.loads_activations, self.load_bits),
            ("stores", self.stores_activations, self.store_bits),
        ):
            if self.wide and moves and bits < WIDE:
                found[word] = f"{self.kernel} {word} {bits} bits at most where {WIDE} are possible"
        return found


@dataclass
class Record:
    """One pass of one call on one target. A unit is one pass over one activation."""

    target: str
    op: str
    mode: str
    dtype: str
    layout: str
    shape: tuple[int, ...]
    options: tuple[tuple[str, int | str], ...]
    plan: str  # its kind
    choices: dict[str, Any]  # the plan itself
    units: float  # of activations, loaded and stored
    partial_units: float  # of partial results
    moved_bytes: int  # activations as often as they are asked for, all else once a launch
    floor_bytes: int | None  # what must be moved (bench/operators); None where no operator says
    device_units: float  # expected of device memory behind an ideal cache
    once_units: float  # with every activation loaded and stored once
    least_units: float  # below which no plan gets with this cache
    why: str  # it is well above once_units behind the cache; empty where it is not
    traffic: list[Traffic]
    kernels: list[Compiled]
    faults: list[str]  # what is wrong with its launches, whatever the kernels are
    expected: Expected | None = None  # in time, where the constants of a device of the target are known

    @property
    def problems(self) -> list[str]:
        """What is wrong with the pass or its kernels, a line each."""
        return [*self.faults, *(sentence for kernel in self.kernels for sentence in kernel.breaks.values())]

    def as_dict(self) -> dict[str, Any]:
        """As a line of records.jsonl: a launch has what it moves and what it was compiled to."""
        found = _without(asdict(self), "traffic", "kernels", *(() if self.expected else ("expected",)))
        launches = [
            {**asdict(moved), **_without(asdict(kernel), "target", "launch"), "breaks": list(kernel.breaks)}
            for moved, kernel in zip(self.traffic, self.kernels, strict=False)
        ]
        return {"record": "pass", **found, "launches": launches, "problems": self.problems}


def _without(found: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in keys}


@dataclass
class _Kernel:
    """A distinct kernel while it is being inspected."""

    name: str
    kernel: Any
    needed_by: Launch
    wide: bool = True
    activations: set[str] = field(default_factory=set)  # of "loads", "stores"


def collect(target: str, launches: Iterable[Launch], constants: Constants | None = None) -> list[Record]:
    """Compiles every pass of every call for one target, and inspects each distinct kernel once.

    With the constants of a device of the target each pass has the time that is expected of it there.
    """
    _, device = TARGETS[target]
    kernels: dict[int, _Kernel] = {}
    passes: list[tuple[Launch, str, Declared, list[tuple[str, Any]]]] = []
    with compiling(target) as found:
        for launch in launches:
            tensors = launch.tensors("meta")
            for mode, each in launch.passes.modes.items():
                found.clear()
                each.run(tensors, device)
                declared = each.declare(tensors, device)
                passes.append((launch, mode, declared, list(found)))
                for name, kernel in found:
                    if id(kernel) not in kernels:
                        kernels[id(kernel)] = _Kernel(name, kernel, launch)
                    kernels[id(kernel)].wide &= launch.run_bytes % (WIDE // 8) == 0
                for (_, kernel), moved in zip(found, declared.launches, strict=False):
                    kernels[id(kernel)].activations |= _accessed(moved)
    codes = inspect([kernel.kernel for kernel in kernels.values()])
    compiled = {
        key: _compiled(target, number, kernel, code)
        for number, ((key, kernel), code) in enumerate(zip(kernels.items(), codes, strict=True))
    }
    return [
        _record(target, launch, mode, declared, [(name, compiled[id(kernel)]) for name, kernel in made], constants)
        for launch, mode, declared, made in passes
    ]


def _accessed(moved: Traffic) -> set[str]:
    activations = [access for name, access in moved.accesses.items() if name in ACTIVATIONS]
    return {kind for kind in ("loads", "stores") if any(getattr(access, kind) for access in activations)}


def _compiled(target: str, number: int, found: _Kernel, code: MachineCode) -> Compiled:
    metadata, limits = found.kernel.metadata, LIMITS[target]
    resident = resident_programs(
        limits, metadata.num_warps, TARGETS[target][1].warp_size, code.registers, metadata.shared
    )
    return Compiled(
        target=target,
        number=number,
        kernel=found.name,
        launch=str(found.needed_by),
        num_warps=metadata.num_warps,
        registers=code.registers,
        spill=code.spill,
        shared=metadata.shared,
        loads=code.loads,
        stores=code.stores,
        resident=resident,
        occupancy=resident * metadata.num_warps / limits.warps,
        wide=found.wide,
        loads_activations="loads" in found.activations,
        stores_activations="stores" in found.activations,
    )


def _record(
    target: str,
    launch: Launch,
    mode: str,
    declared: Declared,
    made: list[tuple[str, Compiled]],
    constants: Constants | None,
) -> Record:
    said, done = [moved.kernel for moved in declared.launches], [name for name, _ in made]
    unit, moved = launch.activation_bytes, declared.launches
    faults = [] if said == done else [f"launches {', '.join(done)}; declared are {', '.join(said)}"]
    for each, (_, kernel) in zip(moved, made, strict=False):
        resident = kernel.resident * TARGETS[target][1].multiprocessors
        if each.waits and prod(each.grid) > resident:
            faults.append(f"{each.kernel}: {prod(each.grid)} programs wait for each other where {resident} fit")
    device_units, once, least, why = _behind_cache(target, launch, declared, [kernel for _, kernel in made])
    activations, partials = sum(m.activation_bytes for m in moved), sum(m.partial_bytes for m in moved)
    return Record(
        target=target,
        op=launch.op,
        mode=mode,
        dtype=launch.dtype,
        layout=launch.layout,
        shape=launch.shape,
        options=launch.options,
        plan=declared.kind,
        choices=asdict(declared.plan) | ({"once": _without(asdict(declared.once), "tiled")} if declared.once else {}),
        units=activations / unit,
        partial_units=partials / unit,
        moved_bytes=sum(m.moved_bytes for m in moved),
        floor_bytes=_floor(launch, mode),
        device_units=device_units,
        once_units=once,
        least_units=least,
        why=why,
        traffic=list(moved),
        kernels=[kernel for _, kernel in made],
        faults=faults,
        expected=_expected(constants, launch, declared, device_units) if constants else None,
    )


def _expected(constants: Constants, launch: Launch, declared: Declared, device_units: float) -> Expected | None:
    moved = declared.launches
    beside = sum(each.moved_bytes - each.activation_bytes for each in moved)
    waited = sum(waits(declared, each, launch.shape) for each in moved)
    return expected(constants, device_units * launch.activation_bytes + beside, len(moved), waited)


def _floor(launch: Launch, mode: str) -> int | None:
    operator = audited()[launch.op]
    if mode not in operator.modes or launch.dtype not in case.DTYPES:
        return None
    return operator.bytes_moved(case.Case(launch.op, launch.shape, launch.options, launch.dtype, launch.layout, mode))


def _behind_cache(
    target: str, launch: Launch, declared: Declared, kernels: list[Compiled]
) -> tuple[float, float, float, str]:
    """(device_units, once_units, least_units, why) of a pass."""
    units, plan = _device_units(target, launch, declared, kernels), declared.plan
    if not isinstance(plan, SWEPT):
        # Rows need not wait for each other: few enough at a time would always fit.
        distinct = {name: access.distinct for moved in declared.launches for name, access in moved.accesses.items()}
        once = sum(distinct[name] for name in ACTIVATIONS if name in distinct) / launch.activation_bytes
        why = "the rows that are swept at a time outgrow the cache together" if units > CLOSE * once else ""
        return units, once, once, why
    sweeps = [sweep for moved in declared.launches for sweep in moved.sweeps]
    once = once_units(sweeps)
    least = least_units(plan, sweeps, _itemsize(launch), LIMITS[target].cache)
    why = declared.apart or reason(plan, declared.once, TARGETS[target][1], units, least)
    return units, once, least, why if units > CLOSE * once else ""


def _itemsize(launch: Launch) -> int:
    return launch.activation_bytes // prod(launch.shape)


def _device_units(target: str, launch: Launch, declared: Declared, kernels: list[Compiled]) -> float:
    multiprocessors, swept = TARGETS[target][1].multiprocessors, []
    if not isinstance(declared.plan, SWEPT):
        asked = sum(moved.activation_bytes for moved in declared.launches)
        found = 0
        for moved, kernel in zip(declared.launches, kernels, strict=False):
            at_once = min(prod(moved.grid), kernel.resident * multiprocessors)
            # Either all of what waits for its second sweep fits, or nothing of it is counted on.
            found += moved.again if at_once * moved.span <= LIMITS[target].cache else 0
        return (asked - found) / launch.activation_bytes
    for moved, kernel in zip(declared.launches, kernels, strict=False):
        if moved.sweeps:
            windows, splits = moved.grid
            swept.append(Programs(moved.sweeps, windows, splits, moved.ahead, kernel.resident * multiprocessors))
    return expected_units(declared.plan, swept, _itemsize(launch), LIMITS[target].cache)
