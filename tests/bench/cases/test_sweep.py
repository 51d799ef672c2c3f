"""Arguments -> cases."""

from itertools import pairwise

import pytest

from bench import cli
from bench.cases import sweep
from bench.cases.operators import operators
from bench.cases.sweep import Sweep
from bench.cli import BadArgument

OPERATORS = operators()


def cases(**given):
    return sweep.cases(sweep.parse(given, OPERATORS, "smoke"), OPERATORS)


def problems(**given):
    return list(dict.fromkeys(case.problem for case in cases(**given)))


def test_given_axes_make_exactly_their_product_in_every_mode():
    found = problems(op="bn", batch="2,4", channels="3,65", spatial="7x7", dtype="fp32,bf16", layout="nchw,nhwc")
    assert [(p.shape, p.dtype, p.layout) for p in found] == [
        ((batch, channels, 7, 7), dtype, layout)
        for batch in (2, 4)
        for channels in (3, 65)
        for dtype in ("fp32", "bf16")
        for layout in ("nchw", "nhwc")
    ]
    every = cases(op="bn", batch="2,4", channels="3,65", spatial="7x7", dtype="fp32,bf16", layout="nchw,nhwc")
    assert len(every) == 16 * len(OPERATORS["batch_norm"].modes)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_preset_of_every_operator_has_cases_and_none_twice(name):
    for preset in OPERATORS[name].presets:
        found = cases(op=name, preset=preset)
        assert found
        assert len(set(found)) == len(found)
        assert {case.op for case in found} == {name}


def test_the_cases_of_one_problem_stand_next_to_each_other():
    found = [case.problem for case in cases(op="all")]
    changes = sum(before != after for before, after in pairwise(found))
    assert changes + 1 == len(set(found))


def test_short_and_long_names_mean_the_same_operator():
    assert cases(op="bn") == cases(op="batch_norm") == cases(op="bn,batch_norm")


def test_all_means_every_operator():
    assert {case.op for case in cases(op="all")} == set(OPERATORS)


def test_an_axis_given_replaces_that_axis_of_a_model_preset_and_leaves_the_others():
    as_it_is = problems(op="bn", preset="resnet50")
    at_batch_3 = problems(op="bn", preset="resnet50", batch="3")
    assert {p.shape[1:] for p in at_batch_3} == {p.shape[1:] for p in as_it_is}
    assert {p.shape[0] for p in at_batch_3} == {3}


def test_a_models_preset_has_its_modes_and_a_typed_mode_replaces_them():
    def modes(**given):
        return {case.mode for case in cases(op="bn", **given)}

    assert modes(preset="resnet50") == {"fwd", "bwd", "fwd_bwd"}
    assert modes(preset="resnet50-inference") == {"eval"}
    assert modes(preset="resnet50-inference", mode="fwd,eval") == {"fwd", "eval"}
    assert modes(preset="smoke") == {"fwd", "bwd", "fwd_bwd", "eval"}
    assert {case.mode for case in cases(op="rms", preset="llama3-8b-inference")} == {"fwd"}


def test_cases_that_become_equal_are_kept_once():
    found = problems(op="bn", preset="resnet50", channels="64")
    assert len(found) == len(set(found)) < len(problems(op="bn", preset="resnet50"))


def test_an_axis_applies_to_the_operators_that_have_it():
    found = cases(op="all", channels="7")
    assert {case.shape[1] for case in found if case.op == "batch_norm"} == {7}
    assert [case for case in found if case.op == "layer_norm"] == cases(op="ln")


def test_a_layout_applies_to_the_operators_that_have_it():
    found = cases(op="all", layout="nhwc")
    assert {case.layout for case in found if case.op == "batch_norm"} == {"nhwc"}
    assert {case.op for case in found} == set(OPERATORS)


def test_a_mode_that_an_operator_lacks_leaves_that_operator_out():
    left = {case.op for case in cases(op="all", mode="eval")}
    assert left == {name for name, operator in OPERATORS.items() if "eval" in operator.modes}
    assert "batch_norm" in left and "layer_norm" not in left


def test_an_operator_without_the_preset_is_left_out():
    left = {case.op for case in cases(op="all", preset="resnet50")}
    assert left == {"batch_norm", "batch_norm_add_relu", "batch_norm_relu"}


def test_eps_is_the_operators_own_where_the_preset_has_none():
    given = {"tokens": "4", "hidden": "8"}
    assert {case.eps for case in cases(op="rms", **given)} == {OPERATORS["rms_norm"].eps}
    assert {case.eps for case in cases(op="ln", **given)} == {OPERATORS["layer_norm"].eps}
    # The model's 1e-3 belongs to its shapes, and goes with them.
    found = cases(op="bn", preset="inception_v3", batch="2", channels="3", spatial="7x7")
    assert {case.eps for case in found} == {OPERATORS["batch_norm"].eps}


def test_inputs_are_normal_unless_asked_and_each_offset_is_a_case_of_its_own():
    assert {(case.inputs, case.offset) for case in cases(op="ln")} == {("normal", 0.0)}
    found = cases(op="ln", inputs="normal,offset,huge", offset="1e2,1e4,100")
    families = [("normal", 0.0), ("offset", 1e2), ("offset", 1e4), ("huge", 0.0)]
    assert len(found) == len(set(found)) == 4 * len(cases(op="ln"))
    assert {(case.inputs, case.offset) for case in found} == set(families)
    assert {case.offset for case in cases(op="ln", inputs="offset")} == {1e2, 1e4, 1e6}
    assert len({case.label for case in found}) == len(found)


def test_values_given_twice_count_once():
    assert cases(op="ln", tokens="4,4", hidden="8") == cases(op="ln", tokens="4", hidden="8")


@pytest.mark.parametrize(
    ("given", "argument", "says"),
    [
        (
            {"op": "bm"},
            "--op",
            "bn, bn_add_relu, bn_relu, brn, gn, in, ln, ln_add, lp, nbn, prms, rms, rms_add, seq_bn, wn",
        ),
        ({"op": ""}, "--op", "empty"),
        ({"dtype": "fp8"}, "--dtype", "fp32, fp16, bf16"),
        ({"dtype": "fp16,"}, "--dtype", "empty"),
        ({"mode": "forward"}, "--mode", "fwd"),
        ({"op": "ln", "mode": "eval"}, "--mode", "fwd, bwd, fwd_bwd"),
        ({"op": "ln", "layout": "nhwc"}, "--layout", "rows"),
        ({"preset": "smokey"}, "--preset", "did you mean smoke"),
        ({"op": "ln", "preset": "resnet50"}, "--preset", "not one of"),
        ({"op": "rms_add", "preset": "qk-norm"}, "--preset", "not one of"),
        ({"op": "bn", "preset": "resnet50-infer"}, "--preset", "did you mean resnet50-inference"),
        ({"op": "bn", "hidden": "8"}, "--hidden", "bn has --batch, --channels, --spatial"),
        ({"batch": "0"}, "--batch", "whole number above zero"),
        ({"batch": "-1"}, "--batch", "whole number above zero"),
        ({"batch": "2.5"}, "--batch", "whole number above zero"),
        ({"batch": "٣"}, "--batch", "whole number above zero"),
        ({"batch": "9" * 5000}, "--batch", "whole number above zero"),
        ({"batch": ","}, "--batch", "empty"),
        ({"spatial": "56x"}, "--spatial", "56x56"),
        ({"spatial": "0x7"}, "--spatial", "56x56"),
        ({"spatial": "2x2x2x2"}, "--spatial", "spatial"),
        ({"inputs": "ofset"}, "--inputs", "did you mean offset"),
        ({"inputs": ""}, "--inputs", "empty"),
        ({"offset": "1e4"}, "--offset", "only together with --inputs offset"),
        ({"inputs": "offset", "offset": "big"}, "--offset", "a number from 1 to 1e+07"),
        ({"inputs": "offset", "offset": "-1e4"}, "--offset", "a number from 1 to 1e+07"),
        ({"inputs": "offset", "offset": "nan"}, "--offset", "a number from 1 to 1e+07"),
        ({"op": "ln", "tokens": "1000000000", "hidden": "1000000000"}, "--tokens", "more than a device holds"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_it(given, argument, says):
    with pytest.raises(BadArgument) as refused:
        cases(**given)
    text = str(refused.value)
    assert argument in text.partition(":")[0]
    assert says in text
    assert "\n" not in text


def test_a_sweep_without_any_case_is_refused():
    with pytest.raises(BadArgument, match="--mode"):
        sweep.cases(Sweep(operators=("layer_norm",), preset="smoke", modes=("eval",)), OPERATORS)


@pytest.mark.parametrize(("text", "length"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("0.5s", 0.5)])
def test_durations_are_read(text, length):
    assert cli.seconds("--time-budget", text) == length


@pytest.mark.parametrize("text", ["", "0", "0s", "-5s", "ten", "10 minutes", "nan", "inf", "1e3", "5d"])
def test_no_duration_is_refused(text):
    with pytest.raises(BadArgument, match="--time-budget"):
        cli.seconds("--time-budget", text)
