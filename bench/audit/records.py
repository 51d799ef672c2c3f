"""The records of an audit: each pass of each call on each target, with its launches and what they were compiled to."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any

from bench.audit.bounds import CLOSE, least_units, once_units, reason
from bench.audit.cache import Programs, expected_units
from bench.audit.calls import Call
from bench.audit.choices import audited
from bench.audit.expected import Constants, ExpectedPassTime, expected, waits
from bench.audit.limits import LIMITS, resident_programs
from bench.audit.machine_code import MachineCode, inspect
from bench.audit.speed.expectation import Expectation, expect
from bench.audit.targets import TARGETS, compiling
from bench.cases.case import DTYPES
from bench.measure.launches import RecordedPass
from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.group_norm.plan import GroupNormPlan
from normlib.kernels.traffic import ACTIVATIONS, KernelLaunch, Traffic

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
        """The broken promises of the kernel, in a word and in a sentence."""
        found = {"spills": f"{self.kernel} spills {self.spill}"} if self.spill else {}
        for word, moves, bits in (
            ("loads", self.loads_activations, self.load_bits),
            ("stores", self.stores_activations, self.store_bits),
        ):
            if self.wide and moves and bits < WIDE:
                found[word] = f"{self.kernel} {word} {bits} bits at most where {WIDE} are possible"
        return found


@dataclass
class PassRecord:
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
    expected: ExpectedPassTime | None = None  # in time, where the constants of a device of the target are known
    simulated: Expectation | None = None

    @property
    def problems(self) -> list[str]:
        """The problems of the pass and of its kernels, a line each."""
        return [*self.faults, *(sentence for kernel in self.kernels for sentence in kernel.breaks.values())]

    def as_dict(self) -> dict[str, Any]:
        """Returns a line of records.jsonl: a launch has what it moves and what it was compiled to."""
        absent = (name for name in ("expected", "simulated") if getattr(self, name) is None)
        found = _without(asdict(self), "traffic", "kernels", *absent)
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
    needed_by: Call
    wide: bool = True
    activations: set[str] = field(default_factory=set)  # of "loads", "stores"


def collect(
    target: str, calls: Iterable[Call], constants: Constants | None = None, simulate: Collection[str] = ()
) -> list[PassRecord]:
    """Compiles every pass of every call for one target, and inspects each distinct kernel once.

    With the constants of a device of the target each pass has the time that is expected of it there; passes in the
    modes of `simulate` have what their machine code is expected to reach.
    """
    kernels: dict[int, _Kernel] = {}
    passes: list[tuple[Call, RecordedPass, list[tuple[KernelLaunch, Any]]]] = []
    with compiling(target) as found:
        for call in calls:
            for mode, run in call.passes():
                found.clear()
                run()
                if not found:
                    continue
                traffic = tuple(launch.traffic for launch, _ in found)
                passes.append((call, RecordedPass(mode, found[0][0].plan, traffic), list(found)))
                for moved, (_, kernel) in zip(traffic, found, strict=True):
                    one = kernels.setdefault(id(kernel), _Kernel(moved.kernel, kernel, call))
                    one.wide &= call.run_bytes % (WIDE // 8) == 0
                    one.activations |= _accessed(moved)
    codes = inspect([kernel.kernel for kernel in kernels.values()])
    compiled = {
        key: _compiled(target, number, kernel, code)
        for number, ((key, kernel), code) in enumerate(zip(kernels.items(), codes, strict=True))
    }
    records = []
    for call, recorded, made in passes:
        record = _record(target, call, recorded, [compiled[id(kernel)] for _, kernel in made], constants)
        if recorded.mode in simulate:
            launches = [(launch, kernel, compiled[id(kernel)].registers) for launch, kernel in made]
            record.simulated = expect(launches, recorded.launches, record.once_units * call.activation_bytes)
        records.append(record)
    return records


def distinct(records: Iterable[PassRecord]) -> list[Compiled]:
    """Returns the kernels of these records, each once."""
    return list({id(kernel): kernel for record in records for kernel in record.kernels}.values())


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
    target: str, call: Call, one: RecordedPass, kernels: list[Compiled], constants: Constants | None
) -> PassRecord:
    unit, faults = call.activation_bytes, []
    for moved, kernel in zip(one.launches, kernels, strict=True):
        resident = kernel.resident * TARGETS[target][1].multiprocessors
        if moved.waits and prod(moved.grid) > resident:
            faults.append(f"{moved.kernel}: {prod(moved.grid)} programs wait for each other where {resident} fit")
    device_units, once, least, why = _behind_cache(target, call, one, kernels)
    moved_bytes = sum(moved.moved_bytes for moved in one.launches)
    activation_bytes = sum(moved.activation_bytes for moved in one.launches)
    time = None
    if constants:
        waited = sum(waits(one, moved, call.shape) for moved in one.launches)
        device_bytes = device_units * unit + moved_bytes - activation_bytes
        time = expected(constants, device_bytes, len(one.launches), waited)
    return PassRecord(
        target=target,
        op=call.op,
        mode=one.mode,
        dtype=call.dtype,
        layout=call.layout,
        shape=call.shape,
        options=call.options,
        plan=one.kind,
        choices=asdict(one.plan),
        units=activation_bytes / unit,
        partial_units=sum(moved.partial_bytes for moved in one.launches) / unit,
        moved_bytes=moved_bytes,
        floor_bytes=_floor(call, one.mode),
        device_units=device_units,
        once_units=once,
        least_units=least,
        why=why,
        traffic=list(one.launches),
        kernels=kernels,
        faults=faults,
        expected=time,
    )


def _floor(call: Call, mode: str) -> int | None:
    operator = audited()[call.op]
    if mode not in operator.modes or call.dtype not in DTYPES:
        return None
    return operator.bytes_moved(replace(call.case, mode=mode))


def _behind_cache(
    target: str, call: Call, one: RecordedPass, kernels: list[Compiled]
) -> tuple[float, float, float, str]:
    """Returns (device_units, once_units, least_units, why) of a pass."""
    cache, (_, device) = LIMITS[target].cache, TARGETS[target]
    unit, itemsize = call.activation_bytes, call.activation_bytes // prod(call.shape)
    launches = list(zip(one.launches, kernels, strict=True))
    if not isinstance(one.plan, SWEPT):
        found = 0
        for moved, kernel in launches:
            at_once = min(prod(moved.grid), kernel.resident * device.multiprocessors)
            # Either all of what waits for its second sweep fits, or nothing of it is counted on.
            found += moved.again if at_once * moved.span <= cache else 0
        units = (sum(moved.activation_bytes for moved in one.launches) - found) / unit
        # Rows need not wait for each other: few enough at a time would always fit.
        distinct = {name: access.distinct for moved in one.launches for name, access in moved.accesses.items()}
        once = sum(distinct[name] for name in ACTIVATIONS if name in distinct) / unit
        why = "the rows that are swept at a time outgrow the cache together" if units > CLOSE * once else ""
        return units, once, once, why
    programs = [
        Programs(moved.sweeps, moved.grid[1], kernel.resident * device.multiprocessors)
        for moved, kernel in launches
        if moved.sweeps
    ]
    sweeps = [sweep for moved in one.launches for sweep in moved.sweeps]
    units = expected_units(one.plan, programs, itemsize, cache)
    once, least = once_units(sweeps), least_units(one.plan, sweeps, itemsize, cache)
    why = getattr(audited()[call.op], "apart", "") or reason(one.plan, units, least)
    return units, once, least, why if units > CLOSE * once else ""
