"""The record says whether the rest of a batch changes the bits of a row, and never judges by it."""

import pytest
import torch
from scripted import Scripted, cases, plan, run

from bench.api import FunctionProvider
from bench.cases import sweep
from bench.cases.operators import operators
from bench.cases.operators.group_norm import groups_of
from bench.measure.providers import Unsupported, providers
from normlib.kernels.group_norm.plan import group_norm
from normlib.kernels.plan import Device
from normlib.kernels.row_norm import plan as row_plan

H200 = Device(132, l2=50 << 20, cooperative=True)


def halved_when_few(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    """Layer norm whose mean is summed in two halves where rows are few, as a kernel does that splits rows."""
    half = x.shape[1] // 2
    few = x.shape[0] < 4
    total = x[:, :half].sum(1) + x[:, half:].sum(1) if few else x.sum(1)
    centred = x - total[:, None] / x.shape[1]
    return centred / (centred.square().mean(1, keepdim=True) + eps).sqrt() * weight + bias


def told(tmp_path, provider, found):
    outcome, _ = run(tmp_path, plan(provider, found=found))
    assert {record.status for record in outcome.records} == {"ok"}
    return {(r.mode, *r.shape): r.batch_invariant for r in outcome.records}


def test_a_reduction_that_changes_with_the_batch_is_told_in_every_pass(tmp_path):
    found = told(tmp_path, FunctionProvider("halved", layer_norm=halved_when_few), cases(tokens="12", hidden="99"))
    assert found == {("fwd", 12, 99): False, ("bwd", 12, 99): False, ("fwd_bwd", 12, 99): False}


@pytest.mark.parametrize(("tokens", "expected"), [("1", None), ("2", True), ("12", True)])
def test_rows_that_are_computed_one_by_one_are_the_same_in_any_batch(tmp_path, tokens, expected):
    found = told(tmp_path, providers()["normlib"], cases(tokens=tokens, hidden="99"))
    assert [*found.values()] == 3 * [expected]


def test_batch_norm_is_looked_at_only_in_evaluation(tmp_path):
    found = told(tmp_path, Scripted(one_shape=False), cases("bn", layout="nchw"))
    assert {mode: same for (mode, *_), same in found.items()} == {
        "fwd": None, "bwd": None, "fwd_bwd": None, "eval": True
    }  # fmt: skip


def test_what_serves_no_smaller_batch_is_not_called_anything(tmp_path):
    def spoil(built, case, inputs):
        if case.shape[0] < 12:
            raise Unsupported("too few rows") if case.mode == "fwd" else SystemExit(0)
        return built

    assert [*told(tmp_path, Scripted(spoil=spoil, one_shape=False), cases(tokens="12", hidden="99")).values()] == 3 * [
        None
    ]


def test_a_program_of_one_shape_is_built_for_no_other(tmp_path):
    provider = Scripted()
    assert [*told(tmp_path, provider, cases(tokens="12")).values()] == 3 * [None]
    assert len(provider.built) == 3 and providers()["torch_compile"].one_shape


def test_the_rows_that_are_compared_are_those_of_the_whole(tmp_path):
    seen = []

    def spoil(built, case, inputs):
        seen.append((case.shape, case.axes, {name: tensor.clone() for name, tensor in inputs.items()}))
        return built

    told(tmp_path, Scripted(spoil=spoil, one_shape=False), cases(tokens="12", mode="fwd"))
    (_, _, whole), *smaller = seen
    assert [(shape, axes) for shape, axes, _ in smaller] == [
        ((rows, 8), (("tokens", rows), ("hidden", 8))) for rows in (1, 4)
    ]
    for (rows, _), _, inputs in smaller:
        for name, tensor in inputs.items():
            assert torch.equal(tensor, whole[name][:rows] if name in ("x", "dy") else whole[name])


def planned(case):
    """Returns the parts of normlib's plan on an H200 that decide the order in which a row is summed."""
    size, rows = case.item_bytes, case.shape[0]
    if case.layout == "rows":
        n = case.shape[1]
        return row_plan.row_forward(n, size, H200), row_plan.row_backward(rows, n, size, H200).rows
    groups = groups_of(case) if case.op == "group_norm" else case.shape[1]
    found = group_norm(case.shape, groups, case.layout == "nhwc", size, H200)
    return found.rows, found.splits, found.block_c, found.block_s


@pytest.mark.parametrize(
    ("op", "other"),
    [("ln", set()), ("rms", set()), ("gn", {"2x320x64x64"}), ("in", {"32x512x16x16"})],
)
def test_normlib_plans_rows_alike_in_any_batch_and_splits_few_images_more(op, other):
    found = set()
    for case in sweep.cases(sweep.parse({"op": op, "preset": "quick"}, operators(), "quick"), operators()):
        for smaller in operators()[case.op].smaller(case):
            if planned(case) != planned(smaller):
                found.add("x".join(map(str, case.shape)))
    assert found == other
