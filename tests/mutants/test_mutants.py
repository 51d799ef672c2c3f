"""Planted bugs do not pass the accuracy gate; a sample of them here, all of them by `make mutants`."""

import importlib
import re
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from mutant_catalogue import FOLDER, MUTANTS, ROOT, SMALL_PLANS, Mutant, parsed, source_of
from mutant_gate import CELLS, AccuracyGate, cases_of
from mutant_planting import callers, planted

import normlib
from normlib.kernels import plan
from normlib.kernels.row_norm import plan as row_plan

# One of each kind, noticed by the first cell that each runs through.
QUICK = (
    "last-column-unread",
    "variance-over-n-plus-1",
    "eps-left-out",
    "rstd-in-bf16",
    "c2-left-out",
    "slices-unweighted",
    "db-of-rounded-dy",
    "fast-inverse-root",
    "batch-running-variance-biased",
    "batch-dw-off-by-1e-6",
    "batch-relu-lets-all-gradients-through",
    "resident-c2-left-out",
    "sync-ranks-of-one-count",
    "group-boundary-off-by-one",
    "instance-running-variance-biased",
)
RENAMED = Mutant(
    "renamed",
    "row_norm.narrow",
    "_row_norm_forward_kernel",
    "the same under another name",
    "squares = tl.sum(lanes, 1, keep_dims=True)\n",
    "total = tl.sum(lanes, 1, keep_dims=True)\n    squares = total\n",
    ("rows",),
)

cached_gate = cache(AccuracyGate)


@pytest.mark.parametrize("mutant", (*SMALL_PLANS, *MUTANTS.values()), ids=lambda mutant: mutant.name)
def test_every_edit_applies_to_the_present_source_and_it_is_still_python(mutant):
    changed = mutant.edited()
    assert changed != source_of(mutant.file)
    compile(changed, mutant.name, "exec")


def test_every_name_and_every_edit_is_there_once():
    mutants = [mutant for file in FOLDER.glob("*.txt") for mutant in parsed(file.read_text(encoding="utf-8"))]
    for told in (Counter(m.name for m in mutants), Counter((m.file, m.within, m.old, m.new) for m in mutants)):
        assert [found for found, times in told.items() if times > 1] == []
    assert len(mutants) == len(MUTANTS) + len(SMALL_PLANS) >= 30


def test_every_file_with_kernels_has_mutants():
    with_kernels = {
        ".".join(file.relative_to(ROOT / "kernels").with_suffix("").parts)
        for file in (ROOT / "kernels").rglob("*.py")
        if re.search(r"^def _\w+_kernel\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert with_kernels <= {mutant.file for mutant in MUTANTS.values()}


@pytest.mark.parametrize("old", ["no such text", "tl.sum("])
def test_an_edit_that_applies_never_or_twice_is_refused(old):
    with pytest.raises(ValueError, match="not once"):
        replace(RENAMED, old=old).edited()


def test_an_edit_of_a_function_that_is_gone_is_refused():
    with pytest.raises(ValueError, match=r"there is no kernels/row_norm/narrow\.py gone"):
        replace(RENAMED, within="gone").edited()


@pytest.mark.parametrize("case", [c for cases in CELLS.values() for c in cases], ids=lambda case: case.label)
def test_the_real_kernels_pass_every_cell_that_mutants_are_run_through(case, device):
    with planted():
        record = cached_gate(device).measure(case)
    assert record.status == "ok", record.reason


@cache
def plans(group):
    """(case, plan forward, and backward) of every cell of a group, as the kernels get them.

    Batch norm's are the plan of sweeps, and of a program for each channel or None; group norm's the one and None.
    """
    found, family = [], {"groups": "group_norm", "batch": "batch_norm", "resident": "batch_norm"}.get(group, "row_norm")
    with planted():
        small = importlib.import_module(f"normlib.kernels.{family}.plan")
        gpu = importlib.import_module("normlib.kernels.plan").INTERPRETER
        for case in CELLS[group]:
            size, last = 4 if case.dtype == "fp32" else 2, case.layout == "nhwc"
            if family == "group_norm":
                found.append((case, small.group_norm(case.shape, dict(case.axes)["groups"], last, size, gpu), None))
            elif family == "batch_norm":
                plan = small.batch_norm(case.shape, last, size, gpu)
                found.append((case, plan, small.batch_norm_resident(plan, size, gpu)))
            else:
                forward = small.row_forward(case.shape[1], size, gpu)
                found.append((case, forward, small.row_backward(*case.shape, size, gpu)))
    return found


def tiles_of(case, plan):
    return -(-case.shape[0] // plan.rows.block_m)


@pytest.mark.parametrize(
    ("group", "what", "holds"),
    [
        ("rows", "several rows a program", lambda case, f, b: f.block_m > 1 and b.rows.block_m > 1),
        ("rows", "a program that is not full", lambda case, f, b: case.shape[0] % f.block_m > 0),
        ("rows", "several chunks, the last ragged", lambda case, f, b: f.chunks * f.block_n > case.shape[1] > 1024),
        ("rows", "a program with two tiles of dw", lambda case, f, b: tiles_of(case, b) > b.programs > 1),
        ("rows", "an odd number of partials", lambda case, f, b: b.programs == 3),
        ("wide", "a loop forward, its end ragged", lambda case, f, b: not f.chunks and case.shape[1] % f.block_n),
        ("wide", "a loop backward", lambda case, f, b: not b.rows.chunks and case.shape[1] % b.rows.block_n),
        ("wide", "two tiles of dw, one not full", lambda case, f, b: b.block_rows < case.shape[0] < 2 * b.block_rows),
        ("batch", "one split", lambda case, p, _: p.splits == 1),
        ("batch", "splits of several tiles, uneven", lambda case, p, _: p.tiles > p.splits and p.tiles % p.splits > 0),
        ("batch", "two groups, contiguous", lambda case, p, _: p.groups > 1 and not p.channels_last),
        ("batch", "two groups, channels-last", lambda case, p, _: p.groups > 1 and p.channels_last),
        ("batch", "an image in several tiles", lambda case, p, _: not p.channels_last and p.positions > p.block_s),
        ("batch", "ragged positions", lambda case, p, _: p.positions % p.block_s > 0),
        ("batch", "tiles of one image in a loop", lambda case, p, _: p.stages and p.positions > p.block_s),
        (
            "batch",
            "splits of a ragged tile",
            lambda case, p, _: not p.stages and p.tiles > 1 and p.positions % p.block_s,
        ),
        ("batch", "ragged channels", lambda case, p, _: p.channels % p.block_c > 0),
        ("groups", "rows that a group does not fill", lambda case, p, _: p.rows > p.per_group),
        ("groups", "several groups a tile", lambda case, p, _: p.rows and p.block_c > p.rows),
        ("groups", "one split", lambda case, p, _: not p.rows and p.splits == 1 and p.batch > 1),
        ("groups", "uneven splits", lambda case, p, _: not p.rows and p.splits > 1 and p.tiles % p.splits > 0),
        ("groups", "several splits of several images", lambda case, p, _: p.splits > 1 and p.batch > 1),
        ("groups", "a group in two blocks", lambda case, p, _: not p.rows and p.per_group % p.block_c and p.groups > 1),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_some_cell_has(group, what, holds):
    assert any(holds(*each) for each in plans(group)), what


def test_each_channel_is_a_programs_only_where_that_is_meant():
    assert all(resident and resident.images > case.shape[0] for case, _, resident in plans("resident"))
    assert not any(resident for _, _, resident in plans("batch"))


def test_no_wide_row_is_held_in_registers():
    assert not any(forward.chunks or backward.rows.chunks for _, forward, backward in plans("wide"))


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, id=m.name, marks=[] if m.name in QUICK else pytest.mark.mutant) for m in MUTANTS.values()],
)
def test_a_planted_bug_is_noticed(mutant, device, record_property):
    records = cached_gate(device).hunt(mutant)
    caught = records[-1]
    cells = ", ".join(record.case.label for record in records)
    assert caught.status != "ok", f"{mutant.about}: noticed by none of its cells: {cells}"
    wrong = [error for error in caught.errors if not error.ok]
    figure = max(wrong, key=lambda error: error.pressure).words if wrong else caught.reason
    record_property("caught by", f"{caught.case.label}: {figure}")
    if mutant.name in QUICK:
        assert (caught.status, len(records)) == ("wrong", 1)
        assert "bound" in figure


def test_a_harmless_edit_is_not_noticed(device):
    records = cached_gate(device).hunt(RENAMED)
    assert [record.reason for record in records if record.status != "ok"] == []
    assert len(records) == len(cases_of(RENAMED)) == len(CELLS["rows"])


@pytest.mark.parametrize("ending", [None, ZeroDivisionError])
def test_the_real_kernels_are_back_afterwards_whatever_happens(ending):
    names = ("plan", "numerics", "host", "reduction", "row_norm.launch", "batch_norm.launch")

    def all_of_them():
        modules = [importlib.import_module(f"normlib.kernels.{name}") for name in names]
        return [*modules, normlib.kernels, normlib.kernels.plan, normlib.kernels.row_norm.launch, *callers().values()]

    before, small = all_of_them(), row_plan.row_forward(4096, 4, plan.INTERPRETER)
    assert {module.__name__ for module in before} >= {
        "normlib.kernels.row_norm.launch",
        "normlib.kernels.weight_norm.launch",
    }
    try:
        with planted(RENAMED):
            assert all(now is not then for now, then in zip(all_of_them(), before, strict=True))
            if ending:
                raise ending
    except ZeroDivisionError:
        pass
    assert all(now is then for now, then in zip(all_of_them(), before, strict=True))
    assert row_plan.row_forward(4096, 4, plan.INTERPRETER) == small


def test_an_edit_that_does_not_apply_leaves_the_real_kernels():
    before = callers()
    with pytest.raises(ValueError, match="not once"), planted(replace(RENAMED, old="no such text")):
        pass
    assert callers() == before
