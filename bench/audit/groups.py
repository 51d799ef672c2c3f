"""Records of one kind together, as the terminal and the page show them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.report.formatting import DASH, percent, size

Row = Mapping[str, Any]
WORDS = (
    "GPU",
    "operator",
    "pass",
    "plan",
    "kernel",
    "call",
    "choices",
    "unfused",
    "why",
)  # columns that are no numbers


@dataclass(frozen=True)
class Line:
    """One line of a table: what stands in each column, which columns are wrong, and what is inside it."""

    cells: dict[str, str]
    wrong: frozenset[str] = frozenset()
    rows: tuple[Row, ...] = ()


def passes(rows: Iterable[Row]) -> list[Row]:
    """The records of compiled passes."""
    return [row for row in rows if row["record"] == "pass"]


def counts(rows: Iterable[Row]) -> list[Row]:
    """The records of counted launches."""
    return [row for row in rows if row["record"] == "count"]


def kernels(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """(record, launch) of each distinct kernel of a target, where it was needed first."""
    found: dict[tuple[Any, ...], tuple[Row, Row]] = {}
    for row in passes(rows):
        for launch in row["launches"]:
            found.setdefault((row["target"], launch["number"]), (row, launch))
    return list(found.values())


def problems(rows: Iterable[Row]) -> list[str]:
    """Every problem once, with where it was found first."""
    found: dict[str, str] = {}
    for row in rows:
        for problem in row["problems"]:
            found.setdefault(" ".join(filter(None, (row.get("target"), problem))), label(row))
    return [f"{problem}: {where}" for problem, where in found.items()]


def label(row: Row) -> str:
    """The call of a record in words."""
    if row["record"] == "count":
        return f"{row['call']} {row['mode']}"
    return f"{row['op']} {shape(row)} {row['dtype']} {row['layout']} {row['mode']}"


def shape(row: Row) -> str:
    """32x64x56x56."""
    return "x".join(map(str, row["shape"]))


def plans(rows: Iterable[Row]) -> list[Line]:
    """A line a target, operator, pass and kind of plan."""
    return [
        Line(
            {
                "GPU": target,
                "operator": op,
                "pass": mode,
                "plan": plan,
                "calls": f"{len(found):,}",
                **_moved(found),
                **_compiled([launch for row in found for launch in row["launches"]]),
            },
            _wrong(found),
            tuple(found),
        )
        for (target, op, mode, plan), found in _by(passes(rows), "target", "op", "mode", "plan").items()
    ]


def calls(rows: Iterable[Row]) -> list[Line]:
    """A line a record: one pass of one call."""
    return [
        Line(
            {
                "call": f"{shape(row)} {row['dtype']} {row['layout']}",
                **_moved([row]),
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
                "call": f"{shape(row)} {row['dtype']} {row['layout']}",
                "plan": row["plan"],
                "once": _span([row["once_units"]]),
                "least": _span([row["least_units"]]),
                "behind a cache": _span([row["device_units"]]),
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
        for (op, mode, plan), found in _by(counts(rows), "op", "mode", "plan").items()
    ]


def pairs(rows: Iterable[Row]) -> list[Line]:
    """A line a target, fused operator and pass, beside the same unfused."""
    found = _by([row for row in rows if row["record"] == "pair"], "target", "op", "mode")
    return [
        Line(
            {
                "GPU": target,
                "operator": op,
                "pass": mode,
                "calls": f"{len(same):,}",
                "fused units": _span([row["fused_bytes"] / row["unit_bytes"] for row in same]),
                "unfused units": _span([row["unfused_bytes"] / row["unit_bytes"] for row in same]),
                "fused of unfused": _span([row["fused_bytes"] / row["unfused_bytes"] for row in same]),
                "unfused": " + ".join((same[0]["plain"], *same[0]["around"])),
            },
            frozenset({"fused of unfused"} if any(row["problems"] for row in same) else ()),
        )
        for (target, op, mode), same in found.items()
    ]


def counters(rows: Iterable[Row]) -> list[Line]:
    """A line a GPU, operator, pass and kind of plan: units that the hardware counted, beside the expected."""
    found = _by([row for row in rows if row["record"] == "counters"], "device", "op", "mode", "plan")
    return [
        Line(
            {
                "GPU": device,
                "operator": op,
                "pass": mode,
                "plan": plan,
                "calls": f"{len(same):,}",
                "behind a cache": _span([row["expected_units"] for row in same]),
                "read": _span([_counted(row, "read_bytes") for row in same]),
                "written": _span([_counted(row, "written_bytes") for row in same]),
                "moved": _span([_counted(row, "read_bytes", "written_bytes") for row in same]),
            }
        )
        for (device, op, mode, plan), same in found.items()
    ]


def notes(rows: Iterable[Row]) -> list[str]:
    """What the audit says of itself."""
    return [row["text"] for row in rows if row["record"] == "note"]


def _counted(row: Row, *kinds: str) -> float:
    """Units, all launches together."""
    return float(sum(launch[kind] for launch in row["launches"] for kind in kinds) / row["unit_bytes"])


def _by(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows with the same values of these keys, in the order of their first."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def _span(values: Iterable[float | None], form: str = "{:.2f}") -> str:
    """One value, or the least and the greatest of several: 2.00, 2.00-2.51; a dash where there is none."""
    present = [value for value in values if value is not None]
    if not present:
        return DASH
    low, high = (form.format(end) for end in (min(present), max(present)))
    return low if low == high else f"{low}{DASH}{high}"


def _moved(rows: list[Row]) -> dict[str, str]:
    over = [row["moved_bytes"] / row["floor_bytes"] for row in rows if row["floor_bytes"]]
    return {
        "launches": _span([len(row["launches"]) for row in rows], "{:.0f}"),
        "units": _span([row["units"] for row in rows]),
        "behind a cache": _span([row["device_units"] for row in rows]),
        "partials": _span([row["partial_units"] for row in rows], "{:.3f}"),
        "of the floor": _span(over),
    }


def _compiled(launches: list[Row]) -> dict[str, str]:
    return {
        "registers": _span([each["registers"] for each in launches], "{:.0f}"),
        "spill": _span([each["spill"] for each in launches], "{:.0f}"),
        "load bits": _span(_widest(launches, "loads"), "{:.0f}"),
        "store bits": _span(_widest(launches, "stores"), "{:.0f}"),
        "occupancy": DASH.join(dict.fromkeys(percent(end([e["occupancy"] for e in launches])) for end in (min, max)))
        if launches
        else DASH,
    }


def _widest(launches: Iterable[Row], kind: str) -> list[int]:
    """Bits of the widest load or store of the launches that move activations so."""
    return [max(map(int, each[kind]), default=0) for each in launches if each[f"{kind}_activations"]]


def _wrong(rows: Iterable[Row]) -> frozenset[str]:
    """The columns that break a promise."""
    launches = [launch for row in rows for launch in row["launches"]]
    found = {column for column, key in COLUMN_OF.items() for launch in launches if key in launch["breaks"]}
    return frozenset(found | ({"launches"} if any(row["faults"] for row in rows) else set()))


COLUMN_OF = {"spill": "spills", "load bits": "loads", "store bits": "stores"}


def _widths(instructions: Mapping[Any, int]) -> str:
    """128 (8), 32 (2): bits and how many instructions have them."""
    return ", ".join(f"{bits} ({n})" for bits, n in sorted(instructions.items(), key=lambda item: -int(item[0])))


def _choices(plan: Mapping[str, Any], before: str = "") -> str:
    """A plan as `block_m 4, num_warps 8, ...`, without what is empty."""
    parts = []
    for key, value in plan.items():
        if isinstance(value, Mapping):
            parts.append(_choices(value))
        elif value not in ((), [], 0, False, None):
            parts.append(f"{key} {value}")
    return ", ".join(filter(None, parts))


def _bytes(rows: Iterable[Row], side: str) -> int:
    """Loaded and stored, of all launches."""
    launches = [row[side] for row in rows if row[side]]
    return sum(loads + stores for launch in launches for loads, stores, _ in launch["accesses"].values())
