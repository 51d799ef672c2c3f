"""Records of an audit -> one HTML file that opens offline, in the style of the reports. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from bench.audit import groups, tables
from bench.audit.groups import Line, Row
from bench.page.formatting import spoken
from bench.page.templating import scripts, style, templates

SECTIONS = (
    ("above", "Above the floor"),
    ("constants", "Constants"),
    ("counters", "Hardware"),
    ("fused", "Fused"),
    ("kernels", "Kernels"),
    ("counts", "Bytes counted"),
    ("columns", "Columns"),
)
COLUMNS = (
    ("pass", "fwd and bwd in training, eval and eval_bwd with running statistics."),
    (
        "units",
        "Bytes of activations that the plan's launches load and store, over those of x. An activation that is "
        "swept twice counts twice.",
    ),
    (
        "behind a cache",
        "Units expected of device memory where an ideal cache of this GPU's size (its last before the memory) "
        "keeps what was used last: tiles of a few KB, all programs that fit taking turns, one tile each. A"
        " bound, not a measurement.",
    ),
    (
        "once, least",
        "Units with every activation moved once, as with an endless cache; and those that no plan gets below with this "
        "cache alone: a channel's statistics want all of its sectors of 32 bytes, which channels-last are those of 16 "
        "channels in 16 bits, and what of them outgrows the cache comes twice.",
    ),
    ("partials", "Bytes of partial results between two launches, written and read once, in units."),
    (
        "of the floor",
        "Activations as often as they are asked for and everything else once a launch, over the bytes that must "
        "move: every input and output once (bench/operators).",
    ),
    ("registers", "Vector registers of a lane."),
    ("spill", "Bytes of stack on NVIDIA, spilled vector registers on AMD. Must be 0."),
    (
        "load bits, store bits",
        "The widest load and store of kernels that move activations. Must be 128 where an activation's contiguous"
        " runs are multiples of 16 bytes.",
    ),
    (
        "occupancy",
        "Warps of the programs that fit on a multiprocessor, by their registers, shared memory and threads, of "
        "all it can hold. A bound, not a measurement.",
    ),
    ("loads, stores", "Bits of each kind of instruction, and how many of it the kernel has."),
    ("choices", "The plan itself (kernels/plan.py)."),
    (
        "fused units, unfused units",
        "All bytes that are moved, partials and parameters too, in units: of the fused operator, and of the plain norm "
        "with the operators of PyTorch that it takes besides.",
    ),
    (
        "read, written, moved",
        "Units of device memory by the hardware's counters, as ncu reads them, each pass behind a flush of the cache. "
        "What is still in the cache when a launch ends is not written yet.",
    ),
    ("lanes masked", "Lanes that masks switched off; they are not counted."),
)
EXPECTED = (
    tables.EXPECTED,
    "What a pass is expected to take on the device whose constants are known, and nothing that was measured: bytes of "
    "device memory behind a cache at the bandwidth of the largest copy, and so many microseconds a launch and a wait.",
)
SIMULATED = (
    tables.SIMULATED,
    "The time of a copy of the bytes that must move, over the time that a pass is expected to take on an NVIDIA H200: "
    "simulated from its machine code (bench/audit/speed), not measured. The bound is what holds it back there.",
)
# What the passes of an operator leave out.
ABOUT = {
    "sync_batch_norm": "The launches of one rank: a shape is that of its share of the batch, and ranks is how many "
    "messages it merges, its own and the others'. torch.distributed gathers them between two launches, 3 C + 2 values "
    "from each rank forward and 2 C backward. What that sends, copies and waits for is no launch of these kernels and "
    "not in any figure here. Evaluation is batch norm's.",
}


def html(rows: Sequence[Row], command: str) -> str:
    """Returns the whole page; `command` is the command that made the records."""
    passes = groups.passes(rows)
    operators: dict[str, list[Line]] = {}
    for line in tables.plans(rows):
        operators.setdefault(line.rows[0]["op"], []).append(line)
    targets = list(dict.fromkeys(row["target"] for row in passes))
    above, pairs, constants = tables.above(rows), tables.pairs(rows), tables.constants(rows)
    empty = {name for name, found in (("above", above), ("fused", pairs), ("constants", constants)) if not found}
    parts = {"verdict": "Verdict", **{op: spoken(op) for op in operators}, **dict(SECTIONS)}
    return (
        templates()
        .get_template("audit.html.j2")
        .render(
            style=style(),
            scripts=scripts("theme", "copy"),
            sections={name: title for name, title in parts.items() if name not in empty},
            command=command,
            words=groups.WORDS,
            passes=len(passes),
            kernels=len(groups.kernels(rows)),
            targets=targets,
            problems=groups.problems(rows),
            operators=operators,
            calls=tables.calls,
            compiled={name: tables.compiled([row for row in passes if row["target"] == name]) for name in targets},
            counted=tables.counted(rows),
            pairs=pairs,
            constants=constants,
            counters=tables.counters(rows),
            notes=groups.notes(rows),
            about=ABOUT,
            above=above,
            columns=(
                *COLUMNS,
                *([EXPECTED] if constants else []),
                *([SIMULATED] if any("simulated" in row for row in passes) else []),
            ),
        )
    )
