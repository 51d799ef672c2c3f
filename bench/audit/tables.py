"""The tables of an audit, as the terminal and the page show them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench.audit.groups import Line, Row, by, counts, kernels, label, passes, problem, span
from bench.page.formatting import DASH, percent, size

EXPECTED = "expected us"
SIMULATED = "expected of a copy"


def plans(rows: Iterable[Row]) -> list[Line]:
    """A line a target, operator, pass and kind of plan."""
    rows = passes(rows)
    timed, simulated = (any(name in row for row in rows) for name in ("expected", "simulated"))
    return [
        Line(
            {
                "GPU": target,
                "operator": op,
                "pass": mode,
                "plan": plan,
                "calls": f"{len(found):,}",
                **_moved(found),
                **_expected(found, timed),
                **_simulated(found, simulated),
                **_compiled([launch for row in found for launch in row["launches"]]),
            },
            _wrong(found),
            tuple(found),
        )
        for (target, op, mode, plan), found in by(rows, "target", "op", "mode", "plan").items()
    ]


def calls(rows: Iterable[Row]) -> list[Line]:
    """A line a record: one pass of one call."""
    rows = list(rows)
    timed, simulated = (any(name in row for row in rows) for name in ("expected", "simulated"))
    return [
        Line(
            {
                "call": problem(row),
                **_moved([row]),
                **_expected([row], timed),
                **_simulated([row], simulated),
                "moved": size(row["moved_bytes"]),
                "floor": size(row["floor_bytes"]),
                **_compiled(row["launches"]),
                "choices": _choices(row["choices"]),
            },
            _wrong([row]),
        )
        for row in rows
    ]


def above(rows: Iterable[Row]) -> list[Line]:
    """A line a pass that moves well more than every activation once behind a cache, with the reason."""
    return [
        Line(
            {
                "GPU": row["target"],
                "operator": row["op"],
                "pass": row["mode"],
                "call": problem(row),
                "plan": row["plan"],
                "once": span([row["once_units"]]),
                "least": span([row["least_units"]]),
                "behind a cache": span([row["device_units"]]),
                "why": row["why"],
            }
        )
        for row in passes(rows)
        if row["why"]
    ]


def compiled(rows: Iterable[Row]) -> list[Line]:
    """A line a distinct kernel."""
    return [
        Line(
            {
                "kernel": launch["kernel"].strip("_").removesuffix("_kernel"),
                "call": label(row),
                "warps": str(launch["num_warps"]),
                **_compiled([launch]),
                "shared": size(launch["shared"]),
                "loads": _widths(launch["loads"]),
                "stores": _widths(launch["stores"]),
            },
            _wrong([{**row, "launches": [launch], "faults": []}]),
        )
        for row, launch in kernels(rows)
    ]


def counted(rows: Iterable[Row]) -> list[Line]:
    """A line an operator, pass and kind of plan: launches in the interpreter, and what they moved."""
    return [
        Line(
            {
                "operator": op,
                "pass": mode,
                "plan": plan,
                "launches": f"{len(found):,}",
                "counted": size(_bytes(found, "counted")),
                "declared": size(_bytes(found, "declared")),
                "lanes masked": f"{sum(sum(row['masked'].values()) for row in found):,}",
                "differ": str(sum(bool(row["problems"]) for row in found)),
            },
            frozenset({"differ"} if any(row["problems"] for row in found) else ()),
        )
        for (op, mode, plan), found in by(counts(rows), "op", "mode", "plan").items()
    ]


def pairs(rows: Iterable[Row]) -> list[Line]:
    """A line a target, fused operator and pass, beside the same unfused."""
    found = by([row for row in rows if row["record"] == "pair"], "target", "op", "mode")
    return [
        Line(
            {
                "GPU": target,
                "operator": op,
                "pass": mode,
                "calls": f"{len(same):,}",
                "fused units": span([row["fused_bytes"] / row["unit_bytes"] for row in same]),
                "unfused units": span([row["unfused_bytes"] / row["unit_bytes"] for row in same]),
                "fused of unfused": span([row["fused_bytes"] / row["unfused_bytes"] for row in same]),
                "unfused": " + ".join((same[0]["plain"], *same[0]["around"])),
            },
            frozenset({"fused of unfused"} if any(row["problems"] for row in same) else ()),
        )
        for (target, op, mode), same in found.items()
    ]


def counters(rows: Iterable[Row]) -> list[Line]:
    """A line a GPU, operator, pass and kind of plan: units that the hardware counted, beside the expected."""
    found = by([row for row in rows if row["record"] == "counters"], "device", "op", "mode", "plan")
    return [
        Line(
            {
                "GPU": device,
                "operator": op,
                "pass": mode,
                "plan": plan,
                "calls": f"{len(same):,}",
                "behind a cache": span([row["expected_units"] for row in same]),
                "read": span([_counted(row, "read_bytes") for row in same]),
                "written": span([_counted(row, "written_bytes") for row in same]),
                "moved": span([_counted(row, "read_bytes", "written_bytes") for row in same]),
            }
        )
        for (device, op, mode, plan), same in found.items()
    ]


def constants(rows: Iterable[Row]) -> list[Line]:
    """A line a target whose device's constants are known: what expected times are the sum of."""
    return [
        Line(
            {
                "GPU": row["target"],
                "constants of": row["device"],
                "copy GB/s": f"{row['copy_gbps']:g}",
                "launch us": f"{row['launch_us']:g}",
                "barrier us": DASH if row["barrier_us"] is None else f"{row['barrier_us']:g}",
                "measured": "; ".join(f"{figure} {_made(made)}" for figure, made in row["made"].items()),
            }
        )
        for row in rows
        if row["record"] == "constants"
    ]


def _made(made: Mapping[str, Any]) -> str:
    """Returns the day and the versions with which a figure was measured."""
    return f"{made['measured'][:10]} with torch {made['torch']} and triton {made['triton']}"


def _expected(rows: list[Row], timed: bool) -> dict[str, str]:
    """Returns the column of expected times, which are not measured; no column unless `timed`."""
    return {EXPECTED: span((row.get("expected") or {}).get("us") for row in rows)} if timed else {}


def _simulated(rows: list[Row], simulated: bool) -> dict[str, str]:
    """Returns the columns of what machine code is expected to reach, by simulation; none unless `simulated`."""
    if not simulated:
        return {}
    found = [row["simulated"] for row in rows if "simulated" in row]
    bounds = ", ".join(dict.fromkeys(each["bound"] for each in found))
    return {SIMULATED: span([each["copy"] for each in found]), "bound": bounds or DASH}


def _counted(row: Row, *kinds: str) -> float:
    """Returns units, all launches together."""
    return float(sum(launch[kind] for launch in row["launches"] for kind in kinds) / row["unit_bytes"])


def _moved(rows: list[Row]) -> dict[str, str]:
    over = [row["moved_bytes"] / row["floor_bytes"] for row in rows if row["floor_bytes"]]
    return {
        "launches": span([len(row["launches"]) for row in rows], "{:.0f}"),
        "units": span([row["units"] for row in rows]),
        "behind a cache": span([row["device_units"] for row in rows]),
        "partials": span([row["partial_units"] for row in rows], "{:.3f}"),
        "of the floor": span(over),
    }


def _compiled(launches: list[Row]) -> dict[str, str]:
    return {
        "registers": span([each["registers"] for each in launches], "{:.0f}"),
        "spill": span([each["spill"] for each in launches], "{:.0f}"),
        "load bits": span(_widest(launches, "loads"), "{:.0f}"),
        "store bits": span(_widest(launches, "stores"), "{:.0f}"),
        "occupancy": DASH.join(dict.fromkeys(percent(end([e["occupancy"] for e in launches])) for end in (min, max)))
        if launches
        else DASH,
    }


def _widest(launches: Iterable[Row], kind: str) -> list[int]:
    """Returns the bits of the widest load or store of the launches that load or store activations."""
    return [max(map(int, each[kind]), default=0) for each in launches if each[f"{kind}_activations"]]


def _wrong(rows: Iterable[Row]) -> frozenset[str]:
    """Returns the columns that break a promise."""
    launches = [launch for row in rows for launch in row["launches"]]
    found = {column for column, key in COLUMN_OF.items() for launch in launches if key in launch["breaks"]}
    return frozenset(found | ({"launches"} if any(row["faults"] for row in rows) else set()))


COLUMN_OF = {"spill": "spills", "load bits": "loads", "store bits": "stores"}


def _widths(instructions: Mapping[Any, int]) -> str:
    """Returns bits and the number of instructions that have them: 128 (8), 32 (2)."""
    return ", ".join(f"{bits} ({n})" for bits, n in sorted(instructions.items(), key=lambda item: -int(item[0])))


def _choices(plan: Mapping[str, Any], before: str = "") -> str:
    """Returns a plan as `block_m 4, num_warps 8, ...`, without what is empty."""
    parts = []
    for key, value in plan.items():
        if isinstance(value, Mapping):
            parts.append(_choices(value))
        elif value not in ((), [], 0, False, None):
            parts.append(f"{key} {value}")
    return ", ".join(filter(None, parts))


def _bytes(rows: Iterable[Row], side: str) -> int:
    """Returns the bytes loaded and stored, of all launches."""
    launches = [row[side] for row in rows if row[side]]
    return sum(loads + stores for launch in launches for loads, stores, _ in launch["accesses"].values())
