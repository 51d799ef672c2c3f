"""Without a GPU a preset keeps what its shapes are about, and loses what the interpreter could not finish."""

from itertools import groupby
from math import prod

import pytest
import torch

from bench.cases import sweep
from bench.cases.operators import operators
from bench.cases.reduced import reduced

CPU, GPU = torch.device("cpu"), torch.device("cuda")
OPERATORS = operators()
PRESETS = sweep.presets_of(OPERATORS.values())


def cases(**given):
    return sweep.cases(sweep.parse(given, OPERATORS, "smoke"), OPERATORS)


def small(given, typed=()):
    return reduced(cases(**given), CPU, typed)


def test_a_model_keeps_its_channels_dtype_layouts_modes_and_the_batch_that_was_typed():
    before = cases(op="bn", preset="resnet50", batch="2")
    after, (note,) = reduced(before, CPU, ("batch",))

    def kept(found):
        return {(c.shape[:2], c.dtype, c.layout, c.mode, c.eps) for c in found}

    assert kept(after) == kept(before)
    assert {c.shape for c in after if c.shape[1] in (64, 2048)} == {(2, 64, 7, 7), (2, 2048, 2, 2)}
    assert note.startswith("no GPU: 24 of 24 problems have their spatial size reduced, for example ")
    assert "2x64x112x112 to 2x64x7x7, and 12 different ones are left" in note
    assert "errors are real" in note and "\n" not in note


def test_a_batch_that_nobody_typed_shrinks_once_positions_cannot():
    after, (note,) = small({"op": "bn", "preset": "resnet50", "channels": "2048"})
    assert {c.shape for c in after} == {(2, 2048, 2, 2)}
    assert "spatial size, batch reduced" in note


def test_what_was_typed_stays_whatever_it_costs():
    given = {"op": "bn", "batch": "8", "channels": "64", "spatial": "56x56"}
    assert small(given, ("batch", "channels", "spatial")) == (tuple(cases(**given)), ())


def test_rows_lose_tokens_and_keep_their_width():
    after, (note,) = small({"op": "rms", "preset": "qwen3-8b"})
    assert {c.shape for c in after} == {(4, 4096), (128, 128)}
    assert "number of tokens" in note
    assert {c.shape for c in small({"op": "ln", "preset": "wide"})[0]} == {
        (tokens, hidden) for tokens in (1, 2) for hidden in (16384, 32768, 65536, 131072)
    }


def test_odd_sizes_stay_odd_where_halves_do():
    shapes = {c.shape[2:] for c in small({"op": "bn", "preset": "inception_v3", "batch": "2"}, ("batch",))[0]}
    assert {(10, 10), (9, 9)} <= shapes or {(9, 9), (5, 5)} <= shapes


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_left_with_axes_that_make_its_shapes_and_with_enough_to_normalize(preset):
    before = cases(op="all", preset=preset)
    after, notes = reduced(before, CPU)
    assert 0 < len(after) == len(set(after)) <= len(before)
    assert len(notes) == (list(after) != before)
    for case in after:
        assert OPERATORS[case.op].shape(dict(case.axes)) == case.shape
        assert case in before or prod(case.shape) // case.shape[1] >= 2
    problems = [problem for problem, _ in groupby(after, key=lambda c: c.problem)]
    assert len(problems) == len(set(problems))


def test_smoke_is_small_already_and_a_gpu_takes_everything():
    assert small({}) == (tuple(cases()), ())
    model = cases(op="bn", preset="resnet50")
    assert reduced(model, GPU) == (tuple(model), ())
