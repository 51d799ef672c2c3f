"""Every operator that is found, now or later, must keep the contract; those that exist have their numbers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from math import prod

import pytest
import torch

import normlib.functional
from bench.audit.calls import calls
from bench.cases import models, sweep
from bench.cases.case import DTYPES, INPUTS, MODES, Case
from bench.cases.operators import Operator, operators
from bench.cases.random_inputs import TORCH_DTYPES
from bench.cases.sweep import Sweep
from bench.fake_gpu import H200
from bench.measure import cell
from bench.measure.providers import providers

CPU = torch.device("cpu")
OPERATORS = list(operators().values())
ADDS = [operator.name for operator in OPERATORS if "z" in operator.results]
RELUS = [operator.name for operator in OPERATORS if operator.norm and operator.name not in ADDS]
FAMILIES = {name: 1e4 if name == "offset" else 0.0 for name in INPUTS}  # with the offset where there is one
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)


def cases(operator: Operator, preset: str = "smoke") -> list[Case]:
    """The problems of a preset: cases without a mode."""
    found = sweep.cases(Sweep((operator.name,), preset), operators())
    return list(dict.fromkeys(case.problem for case in found))


def case_of(name: str, shape: tuple[int, ...], dtype: str = "fp32", layout: str | None = None, mode: str = "") -> Case:
    return Case(name, shape, (), dtype, layout or operators()[name].layouts[0], mode)


def test_every_functional_form_is_an_operator_and_every_operator_has_one():
    functions = {name for name in vars(normlib.functional) if not name.startswith("_")}
    assert {operator.plain.name for operator in OPERATORS} == functions
    assert len({operator.short for operator in OPERATORS} | set(operators())) == 2 * len(OPERATORS)


def test_declaring_listing_and_sweeping_operators_imports_neither_torch_nor_numpy():
    code = """if True:
        import sys
        from bench.cases import case, models, order, reduced, sweep
        from bench.cases.operators import operators
        for operator in operators().values():
            sweep.cases(sweep.Sweep((operator.name,), "smoke"), operators())[0], operator.presets
        sys.exit(", ".join({"torch", "triton", "normlib", "numpy", "scipy", "pandas"} & sys.modules.keys()) or 0)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@every_operator
def test_every_operator_has_the_presets_that_the_command_line_promises(operator):
    assert {"smoke", "quick", "full"} <= set(operator.sweeps) <= set(operator.presets)
    assert set(operator.modes) <= set(MODES)
    for name, preset in operator.presets.items():
        found = cases(operator, name)
        assert preset.about and found
        assert {case.dtype for case in found} <= set(DTYPES)
        assert {case.layout for case in found} <= set(operator.layouts)


@every_operator
def test_smoke_has_every_kind_of_plan_that_a_gpu_has_for_the_others(operator):
    def kinds(names: tuple[str, ...]) -> set[tuple[str, str, str]]:
        found = (replace(call, dtype="bf16") for call in calls((operator.name,), names))
        return {(call.layout, one.mode, one.kind) for call in dict.fromkeys(found) for one in call.recorded(H200)}

    # Rows of 16385 columns and more, whose weight gradient takes the interpreter seconds a call.
    sliced = {("rows", mode, "slices, barrier") for mode in ("fwd", "bwd")}
    assert kinds(("quick", "full")) - sliced == kinds(("smoke",))


@every_operator
def test_smoke_is_small_quick_has_tens_of_cases_in_both_directions_and_full_hundreds(operator):
    smoke, quick, full = (cases(operator, name) for name in ("smoke", "quick", "full"))
    assert 10 <= len(quick) * len(operator.modes) < 100 <= len(full) * len(operator.modes) < 1000
    assert {case.layout for case in smoke} == {case.layout for case in quick} == set(operator.layouts)
    assert {case.dtype for case in smoke} == set(DTYPES) and {"fp32"} < {case.dtype for case in quick}
    assert max(prod(case.shape) for case in smoke) <= 20_000
    assert any(all(size % 2 for size in case.shape) for case in smoke)
    assert any(all(size.bit_count() == 1 for size in case.shape) for case in smoke)
    assert operator.presets["quick"].modes == ("fwd", "bwd")
    sizes = {prod(case.shape) for case in quick}
    assert len(sizes) >= 2 and max(sizes) >= 1.5 * min(sizes)


@every_operator
def test_every_model_with_norms_for_an_operator_is_a_preset_of_it_in_training_and_inference(operator):
    has = [model for model in models.names() if models.norms(model, operator.name)]
    assert bool(has) == (operator.plain.name in ("batch_norm", "layer_norm", "rms_norm"))
    assert set(operator.presets) - set(operator.sweeps) == {*has, *(f"{model}-inference" for model in has)}
    for model in has:
        assert operator.presets[model].modes == ("fwd", "bwd", "fwd_bwd")
        assert operator.presets[f"{model}-inference"].modes == (("eval",) if "eval" in operator.modes else ("fwd",))


def test_decode_and_wide_are_presets_of_every_row_norm_and_heads_have_no_residual():
    shapes = {
        name: {case.shape for case in cases(operators()["rms_norm"], name)} for name in ("decode", "wide", "qk-norm")
    }
    for name in shapes:
        with_it = {o.name for o in OPERATORS if name in o.presets}
        assert with_it == {o.name for o in OPERATORS if "tokens" in o.axes and (name != "qk-norm" or not o.norm)}
    assert {tokens for tokens, _ in shapes["decode"]} == {1, 4, 16, 64}
    assert {4096, 7168, 8192, 12288} < {hidden for _, hidden in shapes["decode"]}
    assert {hidden for _, hidden in shapes["qk-norm"]} == {64, 128, 256}
    assert {hidden for _, hidden in shapes["wide"]} == {16384, 32768, 65536, 131072}
    assert max(map(prod, shapes["wide"])) == 2**28


@pytest.mark.parametrize(
    ("op", "model", "shape", "dtype", "eps"),
    [
        ("batch_norm", "resnet50", (32, 2048, 7, 7), "fp16", 1e-5),
        ("batch_norm", "inception_v3", (32, 192, 17, 17), "fp16", 1e-3),
        ("batch_norm", "deep-speech-2", (32, 1760, 50), "fp32", 1e-5),
        ("layer_norm", "bert-base", (16384, 768), "fp16", 1e-12),
        ("batch_norm", "resnet50-inference", (1, 2048, 7, 7), "fp16", 1e-5),
        ("layer_norm", "bert-base-inference", (512, 768), "fp16", 1e-12),
        ("rms_norm", "llama3-8b-inference", (32, 4096), "bf16", 1e-5),
        ("rms_norm", "qwen3-8b-inference", (256, 128), "bf16", 1e-6),
        ("rms_norm", "llama3-8b", (8192, 4096), "bf16", 1e-5),
        ("rms_norm", "qwen3-8b", (131072, 128), "bf16", 1e-6),
    ],
)
def test_a_models_preset_has_its_shapes_dtype_and_eps(op, model, shape, dtype, eps):
    assert (shape, dtype, eps) in {(c.shape, c.dtype, c.eps) for c in cases(operators()[op], model)}


@every_operator
def test_the_same_case_has_the_same_inputs_and_another_has_others(operator):
    case = cases(operator)[0]
    first, again = operator.inputs(case, CPU, 3), operator.inputs(case, CPU, 3)
    other_mode = operator.inputs(replace(case, mode="bwd"), CPU, 3)
    other_seed = operator.inputs(case, CPU, 4)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, other_mode[name])
        assert not torch.equal(tensor, other_seed[name])


@every_operator
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_input_is_trivial(operator, dtype):
    case = next(case for case in cases(operator) if case.dtype == dtype)
    inputs = operator.inputs(case, CPU, 0)
    assert inputs["x"].shape == inputs["dy"].shape == case.shape
    assert inputs["x"].dtype == inputs["dy"].dtype == TORCH_DTYPES[dtype]
    statistics = inputs["x"].float().movedim(operator.statistics_dim, 0).flatten(1)
    offsets = (statistics.mean(1) / statistics.std(1)).abs()
    assert 0.5 < offsets.max() < 5
    assert statistics.std(1).max() > 1.2 * statistics.std(1).min()
    weight = inputs["weight"]
    assert weight.min() < 0.9 < 1.1 < weight.max()
    for name, tensor in inputs.items():
        assert tensor.isfinite().all()
        assert tensor.numel() == 1 or tensor.float().std() > 0, name


@every_operator
def test_every_mode_gives_tensors_that_the_reference_has_in_float64(operator):
    case = cases(operator)[0]
    inputs = operator.inputs(case, CPU, 0)
    truth = operator.reference(case, inputs)
    dtypes = operator.dtypes(inputs)
    named = {name for mode in operator.modes for name in operator.outputs(mode)}
    assert set(truth) == named | set(operator.saved) and named <= set(dtypes)
    # One an index, or of an image's groups and channels several.
    for name in operator.saved:
        assert truth[name].dim() == 1 and truth[name].numel() % case.shape[operator.statistics_dim] == 0
    assert set(operator.outputs("fwd_bwd")) == {*operator.outputs("fwd"), *operator.outputs("bwd")}
    for tensor in truth.values():
        assert tensor.dtype == torch.float64
    assert truth["y"].shape == truth["dx"].shape == case.shape
    assert truth["dw"].shape == inputs["weight"].shape


@every_operator
def test_forward_and_backward_move_what_both_move(operator):
    case = cases(operator, "quick")[0]
    moved = {mode: operator.bytes_moved(replace(case, mode=mode)) for mode in operator.modes}
    assert moved["fwd_bwd"] == moved["fwd"] + moved["bwd"]
    # Backward of a norm reads dy besides; with a residual both move four activations, and what goes with a column.
    assert moved["bwd"] > moved["fwd"]


def test_batch_norms_parameters_are_float32_beside_a_half_precision_x():
    operator = operators()["batch_norm"]
    inputs = operator.inputs(case_of("batch_norm", (4, 8, 5, 5), "bf16"), CPU, 0)
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert (inputs[name].dtype, inputs[name].shape) == (torch.float32, (8,))
    assert (inputs["running_var"] > 0).all()
    assert operator.dtypes(inputs)["dw"] == torch.float32


@pytest.mark.parametrize("name", ("layer_norm", "rms_norm"))
def test_the_row_norms_parameters_have_xs_dtype(name):
    inputs = operators()[name].inputs(case_of(name, (4, 32), "bf16"), CPU, 0)
    assert inputs["weight"].dtype == torch.bfloat16
    assert ("bias" in inputs) is (name == "layer_norm")


@pytest.mark.parametrize(("layout", "innermost"), [("nchw", -1), ("nhwc", 1)])
@pytest.mark.parametrize("shape", [(4, 8, 5), (4, 8, 5, 3), (4, 8, 2, 5, 3)])
def test_channels_last_puts_the_channels_innermost_at_any_rank(shape, layout, innermost):
    inputs = operators()["batch_norm"].inputs(case_of("batch_norm", shape, layout=layout), CPU, 0)
    for name in ("x", "dy"):
        assert inputs[name].shape == shape
        assert inputs[name].stride(innermost) == 1
    if layout == "nhwc" and len(shape) == 4:
        assert inputs["x"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("spatial", "shape"), [("56x56", (2, 3, 56, 56)), ("7", (2, 3, 7)), ("4x8x8", (2, 3, 4, 8, 8)), ("1", (2, 3))]
)
def test_a_spatial_has_one_to_three_sizes_and_1_stands_for_none(spatial, shape):
    assert operators()["batch_norm"].shape({"batch": 2, "channels": 3, "spatial": spatial}) == shape


@pytest.mark.parametrize("spatial", ("", "x", "7x", "0x7", "7y7", "1x2x3x4", "-7"))
def test_a_spatial_that_is_none_is_refused_with_what_is_allowed(spatial):
    with pytest.raises(ValueError, match="spatial must look like 7, 56x56 or 4x8x8"):
        operators()["batch_norm"].shape({"batch": 2, "channels": 3, "spatial": spatial})


def test_a_single_value_a_channel_is_refused():
    with pytest.raises(ValueError, match="more than one value a channel"):
        operators()["batch_norm"].shape({"batch": 1, "channels": 3, "spatial": "1"})


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "mode", "moved"),
    [
        # Two, three or four activations of 4096 x 1024, and what goes with a row and with a column.
        ("layer_norm", (4096, 1024), "bf16", "fwd", 2 * 2 * 4096 * 1024 + 2 * 2 * 1024 + 2 * 4 * 4096),
        ("layer_norm", (4096, 1024), "bf16", "bwd", 3 * 2 * 4096 * 1024 + 3 * 2 * 1024 + 2 * 4 * 4096),
        ("rms_norm", (4096, 1024), "fp32", "fwd", 2 * 4 * 4096 * 1024 + 4 * 1024 + 4 * 4096),
        ("rms_norm", (4096, 1024), "fp32", "bwd", 3 * 4 * 4096 * 1024 + 2 * 4 * 1024 + 4 * 4096),
        ("layer_norm_add", (4096, 1024), "bf16", "fwd", 4 * 2 * 4096 * 1024 + 2 * 2 * 1024 + 2 * 4 * 4096),
        ("layer_norm_add", (4096, 1024), "bf16", "bwd", 4 * 2 * 4096 * 1024 + 3 * 2 * 1024 + 2 * 4 * 4096),
        ("rms_norm_add", (4096, 1024), "fp32", "fwd", 4 * 4 * 4096 * 1024 + 4 * 1024 + 4 * 4096),
        ("rms_norm_add", (4096, 1024), "fp32", "bwd", 4 * 4 * 4096 * 1024 + 2 * 4 * 1024 + 4 * 4096),
        ("batch_norm", (32, 64, 56, 56), "fp16", "fwd", 2 * 2 * 32 * 64 * 56 * 56 + 8 * 4 * 64),
        ("batch_norm", (32, 64, 56, 56), "fp16", "bwd", 3 * 2 * 32 * 64 * 56 * 56 + 5 * 4 * 64),
        ("batch_norm", (32, 64, 56, 56), "fp16", "eval", 2 * 2 * 32 * 64 * 56 * 56 + 4 * 4 * 64),
        # A ReLU moves nothing; a residual is an activation more, and a bit an element where it has a gradient.
        ("batch_norm_relu", (32, 64, 56, 56), "fp16", "fwd", 2 * 2 * 32 * 64 * 56 * 56 + 8 * 4 * 64),
        ("batch_norm_add_relu", (32, 64, 56, 56), "fp16", "fwd", 32 * 64 * 56 * 56 * 49 // 8 + 8 * 4 * 64),
        ("batch_norm_add_relu", (32, 64, 56, 56), "fp16", "bwd", 32 * 64 * 56 * 56 * 65 // 8 + 5 * 4 * 64),
        ("batch_norm_add_relu", (32, 64, 56, 56), "fp16", "eval", 3 * 2 * 32 * 64 * 56 * 56 + 4 * 4 * 64),
    ],
)
def test_the_bytes_are_those_that_no_kernel_can_avoid(name, shape, dtype, mode, moved):
    assert operators()[name].bytes_moved(case_of(name, shape, dtype, mode=mode)) == moved


@pytest.mark.parametrize("name", ADDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_residual_makes_the_norm_of_the_rounded_sum(name, dtype):
    operator, norm = operators()[name], operators()[name].plain
    case = case_of(name, (5, 99), dtype)
    inputs = operator.inputs(case, CPU, 0)
    z = inputs["x"] + inputs["residual"]
    truth, of_norm = operator.reference(case, inputs), norm.reference(case, {**inputs, "x": z})
    assert torch.equal(truth["z"], z.double())
    assert torch.equal(truth["dx"], of_norm["dx"] + inputs["dz"].double())
    assert all(torch.equal(truth[name], of_norm[name]) for name in set(of_norm) - {"dx"})


@pytest.mark.parametrize("name", ADDS)
@pytest.mark.parametrize("family", INPUTS)
def test_a_sum_with_a_residual_is_of_the_family_of_x(name, family):
    operator = operators()[name]
    for dtype in DTYPES:
        case = replace(case_of(name, (5, 99), dtype), inputs=family, offset=FAMILIES[family])
        inputs = operator.inputs(case, CPU, 0)
        x, z = inputs["x"].double(), (inputs["x"] + inputs["residual"]).double()
        assert bool(z.isfinite().all()) is (family != "nonfinite")
        if family == "constant":
            assert not z.std(1).any()
        elif family != "nonfinite":
            assert 0.8 < z.norm() / x.norm() < 1.2


@pytest.mark.parametrize("name", RELUS)
@pytest.mark.parametrize("family", INPUTS)
def test_no_sign_before_a_relu_is_left_to_rounding(name, family):
    for dtype in DTYPES:
        case = replace(case_of(name, (3, 5, 7, 7), dtype), inputs=family, offset=FAMILIES[family])
        inputs = operators()[name].inputs(case, CPU, 0)
        x, w, b = (inputs[n].double() for n in ("x", "weight", "bias"))
        norm = torch.nn.functional.batch_norm(x, None, None, w, b, True, eps=case.eps)
        residual = inputs.get("residual", torch.zeros(())).double()
        # Of each term's rounding to the dtype where there are two, of a few in float32 otherwise.
        rounding = torch.finfo(TORCH_DTYPES[dtype]).eps / 2 if "residual" in inputs else 4 * 2.0**-24
        undecided = (norm + residual).abs() <= rounding * (norm.abs() + residual.abs())
        assert not undecided.any()


def test_batch_norms_running_statistics_take_the_unbiased_variance():
    operator = operators()["batch_norm"]
    case = case_of("batch_norm", (4, 3, 5))
    inputs = operator.inputs(case, CPU, 0)
    truth = operator.reference(case, inputs)
    variance = inputs["x"].double().movedim(1, 0).flatten(1).var(1, correction=1)
    expected = 0.9 * inputs["running_var"].double() + 0.1 * variance
    torch.testing.assert_close(truth["running_var"], expected)


def test_evaluations_y_comes_from_the_running_statistics_and_trainings_does_not():
    operator = operators()["batch_norm"]
    case = case_of("batch_norm", (4, 3, 5, 5))
    inputs = operator.inputs(case, CPU, 0)
    truth = operator.reference(case, inputs)
    arguments = [inputs[name].double() for name in ("x", "running_mean", "running_var", "weight", "bias")]
    torch.testing.assert_close(truth["y_eval"], torch.nn.functional.batch_norm(*arguments, eps=case.eps))
    assert not torch.allclose(truth["y_eval"], truth["y"])


def drawn(operator, dtype, family):
    """x as (statistics, elements), in float64."""
    case = next(c for c in cases(operator) if c.dtype == dtype)
    case = replace(case, inputs=family[0], offset=family[1])
    x = operator.inputs(case, CPU, 0)["x"]
    assert x.shape == case.shape and x.dtype == TORCH_DTYPES[dtype]
    return x.double().movedim(operator.statistics_dim, 0).flatten(1)


@every_operator
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_families_are_what_they_are_called(operator, dtype):
    rows = {family[0]: drawn(operator, dtype, family) for family in FAMILIES.items()}
    normal = torch.finfo(TORCH_DTYPES[dtype]).smallest_normal
    assert not rows["constant"].std(1).any() and rows["constant"].any()
    assert 0 < rows["tiny"].var(1).max() < 1e-6
    assert rows["denormal"].any() and (rows["denormal"].abs() < normal).float().mean() > 0.9
    assert 2e4 < rows["huge"].abs().max() <= 65504
    peaks = rows["outlier"].abs().max(1).values
    assert (peaks > 100 * rows["outlier"].abs().median(1).values).all()
    bad = rows["nonfinite"]
    assert [int(kind(bad).sum()) for kind in (torch.isnan, torch.isposinf, torch.isneginf)] == [1, 1, 1]
    assert ((~bad.isfinite()).sum(1) <= 1).all()
    for name in set(INPUTS) - {"nonfinite"}:
        assert rows[name].isfinite().all(), name


@every_operator
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_an_offset_is_a_mean_over_a_standard_deviation(operator, offset):
    rows = drawn(operator, "fp32", ("offset", offset))
    ratio = (rows.mean(1) / rows.std(1)).abs()
    # The deviation is a sample's, of 32 elements at least.
    assert (0.5 * offset < ratio).all() and (ratio < 2 * offset).all()


# What a ReLU adds has no dtype of its own.
OPERATORS_IN = [(o, d) for o in OPERATORS for d in DTYPES if o.name not in RELUS or d == "fp32"]


@pytest.mark.parametrize(("operator", "dtype"), OPERATORS_IN, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("family", FAMILIES)
def test_normlib_is_right_on_every_family(operator, dtype, family):
    case = next(c for c in cases(operator) if c.dtype == dtype)
    settings = cell.RunSettings(CPU, 0, "", providers()["torch"], {case.op: operator})
    case = replace(case, inputs=family, offset=FAMILIES[family], mode="fwd_bwd")
    record = cell.Problem(case.problem, settings).judge(case, providers()["normlib"])
    assert (record.status, record.reason) == ("ok", "")
