"""Planted bugs do not pass the accuracy gate; `python -m bench.mutants` runs them all."""

import importlib
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from operator import attrgetter

import pytest

from bench.mutants import __main__ as command
from bench.mutants import catalogue, gate
from bench.mutants.gate import CELLS, Gate, cases_of
from bench.mutants.planting import SMALL_PLANS, SOURCES, Mutant, edited, planted, source_of
from normlib import kernels
from normlib.kernels import plan
from normlib.kernels.row_norm import plan as row_plan

MUTANTS = {mutant.name: mutant for mutant in catalogue.MUTANTS}
# One of each kind, noticed by the first cell that each runs through.
QUICK = (
    "last-column-unread",
    "variance-over-n-plus-1",
    "eps-left-out",
    "rstd-in-bf16",
    "c2-left-out",
    "db-of-rounded-dy",
    "fast-inverse-root",
    "batch-running-variance-biased",
    "batch-dw-off-by-1e-6",
    "batch-relu-lets-all-gradients-through",
    "sync-ranks-of-one-count",
    "group-boundary-off-by-one",
    "instance-running-variance-biased",
)
RENAMED = Mutant(
    "renamed",
    "row_norm.narrow",
    "_row_norm_forward_kernel",
    "the same under another name",
    "low = low / N\n",
    "rest = low / N\n        low = rest\n",
)

cached_gate = cache(Gate)


def rest_of(text):
    """One line, whatever the width it was printed at."""
    return " ".join(text.split())


@pytest.mark.parametrize("mutant", (*SMALL_PLANS, *MUTANTS.values()), ids=lambda mutant: mutant.name)
def test_every_edit_applies_to_the_present_source_and_it_is_still_python(mutant):
    source = source_of(mutant.file)
    changed = edited(source, mutant)
    assert changed != source
    compile(changed, mutant.name, "exec")


def test_there_are_at_least_thirty_mutants_and_no_two_of_one_name():
    assert len(catalogue.MUTANTS) >= 30
    assert [name for name, times in Counter(m.name for m in catalogue.MUTANTS).items() if times > 1] == []


def test_no_two_mutants_are_the_same_edit():
    edits = Counter((m.file, m.within, m.old, m.new) for m in catalogue.MUTANTS)
    assert [edit for edit, times in edits.items() if times > 1] == []


def test_every_file_with_kernels_has_mutants():
    with_kernels = {
        ".".join(file.relative_to(SOURCES).with_suffix("").parts)
        for file in SOURCES.rglob("*.py")
        if re.search(r"^def _\w+_kernel\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    # Batch norm in one launch wants a cache that no plan of the gate counts on, and what it calls has mutants.
    without = {"batch_norm.one_launch", "batch_norm.on_chip"}
    assert with_kernels - {mutant.file for mutant in catalogue.MUTANTS} == without


@pytest.mark.parametrize("old", ["no such text", "tl.sum("])
def test_an_edit_that_applies_never_or_twice_is_refused(old):
    source = source_of("row_norm.narrow")
    with pytest.raises(ValueError, match="not once"):
        edited(source, replace(RENAMED, old=old))


def test_an_edit_of_a_function_that_is_gone_is_refused():
    with pytest.raises(ValueError, match="no function gone"):
        edited("def here():\n    pass\n", replace(RENAMED, within="gone"))


@pytest.mark.parametrize("case", [c for cases in CELLS.values() for c in cases], ids=lambda case: case.label)
def test_the_real_kernels_pass_every_cell_that_mutants_are_run_through(case, device):
    with planted():
        record = cached_gate(device).measure(case)
    assert record.status == "ok", record.reason


def plans(group):
    """(case, forward's plan or batch norm's, backward's or None) of every cell of a group, as the kernels get them."""
    with planted():
        small = importlib.import_module("normlib.kernels.plan")
        for case in CELLS[group]:
            size = 4 if case.dtype == "fp32" else 2
            if group == "groups":
                groups, last = dict(case.axes)["groups"], case.layout == "nhwc"
                yield case, small.group_norm(case.shape, groups, last, size, small.INTERPRETER), None
            elif group == "batch":
                yield case, small.batch_norm(case.shape, case.layout == "nhwc", size, small.INTERPRETER), None
            else:
                forward = small.row_forward(case.shape[1], size, small.INTERPRETER)
                yield case, forward, small.row_backward(*case.shape, size, small.INTERPRETER)


def tiles_of(case, plan):
    return -(-case.shape[0] // plan.rows.block_m)


@pytest.mark.parametrize(
    ("group", "what", "holds"),
    [
        ("rows", "several rows a program", lambda case, f, b: f.block_m > 1 and b.rows.block_m > 1),
        ("rows", "a program that is not full", lambda case, f, b: case.shape[0] % f.block_m > 0),
        ("rows", "several chunks, the last ragged", lambda case, f, b: sum(f.chunks[-1]) > case.shape[1] > 1024),
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


def test_no_wide_row_is_held_in_registers():
    assert not any(forward.chunks or backward.rows.chunks for _, forward, backward in plans("wide"))


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_noticed(name, device):
    outcome = cached_gate(device).hunt(MUTANTS[name])
    assert outcome.record is not None
    assert (outcome.record.status, outcome.cells) == ("wrong", 1)
    assert "bound" in outcome.figure


def test_a_harmless_edit_is_not_noticed(device):
    outcome = cached_gate(device).hunt(RENAMED)
    assert outcome.record is None, outcome.record.reason
    assert outcome.cells == len(cases_of([RENAMED])) == len(CELLS["rows"])


@pytest.mark.parametrize("ending", [None, ZeroDivisionError])
def test_the_real_kernels_are_back_afterwards_whatever_happens(ending):
    names = ("plan", "numerics", "host", "reduction", "row_norm.launch", "batch_norm.launch")
    callers = [importlib.import_module(f"normlib.{name}") for name in ("row_norm", "batch_norm")]

    def all_of_them():
        modules = [importlib.import_module(f"normlib.kernels.{name}") for name in names]
        return modules + [attrgetter(name)(kernels) for name in names] + [caller.kernels for caller in callers]

    before, small = all_of_them(), row_plan.row_forward(4096, 4, plan.INTERPRETER)
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
    module = importlib.import_module("normlib.row_norm")
    before = module.kernels
    with pytest.raises(ValueError, match="not once"), planted(replace(RENAMED, old="no such text")):
        pass
    assert module.kernels is before


@pytest.fixture
def one_cell(monkeypatch):
    monkeypatch.setattr(gate, "CELLS", {"rows": CELLS["rows"][:1]})


def test_the_command_prints_what_caught_a_mutant(one_cell, capsys):
    assert command.main(["--only", "c1-sign"]) == 0
    said = rest_of(capsys.readouterr().out)
    assert "layer_norm 40x99 fp32 rows fwd_bwd" in said
    assert "1 mutants, 1 caught, 0 survived" in said


def test_the_command_fails_when_a_mutant_survives(one_cell, capsys, monkeypatch):
    monkeypatch.setattr(catalogue, "MUTANTS", (RENAMED, MUTANTS["c1-sign"]))
    assert command.main([]) == 1
    assert "2 mutants, 1 caught, 1 survived" in (said := rest_of(capsys.readouterr().out))
    assert said.endswith("survived: renamed")


def test_the_command_fails_when_the_real_kernels_do(one_cell, capsys, monkeypatch):
    measure = Gate.measure

    def failing(self, case):
        record = measure(self, case)
        record.status, record.reason = "wrong", "y: off"
        return record

    monkeypatch.setattr(Gate, "measure", failing)
    assert command.main(["--only", "c1-sign"]) == 1
    assert "the real kernels fail the gate" in (said := rest_of(capsys.readouterr().out))
    assert "layer_norm 40x99 fp32 rows fwd_bwd: wrong: y: off" in said


@pytest.mark.parametrize("names", ["nope", "c1-sign,nope", ""])
def test_what_is_no_mutant_is_refused_in_one_line(names, capsys):
    assert command.main(["--only", names]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("bench.mutants: error: --only: ")
    assert said.err.count("\n") == 1


def test_list_names_every_mutant_and_runs_none(capsys, monkeypatch):
    monkeypatch.setattr(Gate, "measure", None)
    assert command.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in MUTANTS)
    assert len(said.splitlines()) >= 1 + len(MUTANTS)
