"""A fused operator moves fewer bytes than the pair that it replaces; what PyTorch moves around a norm is noted."""

from dataclasses import replace

import pytest

from bench.audit import fused
from bench.audit.calls import Call, audited, calls

# By hand: relu reads and writes one; threshold_backward reads a gradient and an output; a sum reads two.
AROUND = {
    "batch_norm_relu": ({"relu": 2}, {"threshold_backward": 3}),
    "batch_norm_add_relu": ({"add": 3, "relu": 2}, {"threshold_backward": 3}),
    "layer_norm_add": ({"add": 3}, {"add": 3}),
    "rms_norm_add": ({"add": 3}, {"add": 3}),
}


def test_every_fused_operator_has_its_pair():
    assert fused.UNFUSED.keys() == {op for op in audited() if op.endswith(("_add", "_relu"))} == AROUND.keys()


@pytest.mark.parametrize("op", AROUND)
def test_what_pytorch_moves_around_a_norm_is_what_it_reads_and_writes(op):
    assert fused.units_around(op) == AROUND[op]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_fused_step_moves_fewer_bytes_than_its_pair(target):
    found = list(fused.pairs(target, calls(AROUND)))
    evaluating = {(op, mode) for op in AROUND if op.startswith("batch") for mode in ("eval", "eval_bwd")}
    assert {(pair.op, pair.mode) for pair in found} == {
        (op, mode) for op in AROUND for mode in ("fwd", "bwd")
    } | evaluating
    assert [pair.problems for pair in found if pair.problems] == []


def test_the_pair_of_an_added_residual_is_one_norm_and_one_sum():
    call = Call("rms_norm_add", (4096, 4096), "bf16", "rows")
    forward, backward = fused.pairs("sm_90", [call])
    unit, vectors = 4096 * 4096 * 2, 4096 * 2 + 4096 * 4  # weight and rstd
    assert (forward.fused_bytes, forward.unfused_bytes) == (4 * unit + vectors, 5 * unit + vectors)
    assert backward.unfused_bytes - backward.fused_bytes == 2 * unit


def test_a_fused_form_that_saves_nothing_is_a_problem():
    (forward, backward) = fused.pairs("sm_90", [Call("rms_norm_add", (8, 64), "bf16", "rows")])
    worse = replace(forward, fused_bytes=forward.unfused_bytes)
    assert worse.problems and worse.as_dict()["problems"] == worse.problems
    saved = forward.unfused_bytes - forward.fused_bytes
    assert backward.saved_beside == saved > 0 and forward.saved_beside == 0
    assert not replace(backward, fused_bytes=backward.unfused_bytes + saved - 1).problems
    assert replace(backward, fused_bytes=backward.unfused_bytes + saved).problems


def test_a_call_that_lacks_a_tensor_has_no_pair():
    assert list(fused.pairs("sm_90", [Call("rms_norm_add", (8, 64), "bf16", "rows", ("dz",))])) == []
