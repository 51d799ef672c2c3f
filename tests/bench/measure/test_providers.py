"""Every provider that is found, now or later, must keep the contract; each has its own ways to decline."""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Callable

import pytest
import torch
from provider_cells import CPU, copies, errors_of, problem
from torch import Tensor
from triton.runtime.interpreter import GridExecutor

from bench.cases.case import Case
from bench.cases.operators import operators
from bench.measure.providers import Unsupported, _autograd, _cudnn_rows, cudnn, providers

CELLS = [(op, mode) for op, operator in operators().items() for mode in operator.modes]
every_cell = pytest.mark.parametrize(("op", "mode"), CELLS, ids=["-".join(cell) for cell in CELLS])


# The textbook's formulas, which are never timed, serve only some cells: tests/bench/measure/test_formulas.py.
@pytest.fixture(params=[name for name, p in providers().items() if p.timed and p.unavailable(CPU) is None])
def provider(request):
    return providers()[request.param]


def test_the_providers_are_found_and_each_has_a_version():
    peers = {"apex", "cudnn", "flag_gems", "flash_linear_attention", "liger", "quack", "transformer_engine"}
    assert {"normlib", "torch", "torch_compile"} | peers <= set(providers())
    assert all(found.version() for found in providers().values())


@every_cell
def test_a_cell_is_right_again_and_again_and_leaves_its_inputs_alone(provider, op, mode):
    case, inputs = problem(op, mode)
    before = copies(inputs)
    runnable = provider.build(case, inputs)
    for _ in range(3):
        runnable.run()
    first, second = runnable.outputs(), runnable.outputs()
    assert errors_of(case, inputs, first) == []
    assert all(torch.equal(first[name], second[name]) for name in operators()[op].outputs(mode))
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name])
        assert tensor.grad is None


@every_cell
def test_outputs_are_those_of_what_the_inputs_hold_now(provider, op, mode):
    case, inputs = problem(op, mode)
    runnable = provider.build(case, inputs)
    for name, fresh in operators()[op].inputs(case, CPU, seed=1).items():
        inputs[name].copy_(fresh)
    runnable.run()
    assert errors_of(case, inputs, runnable.outputs()) == []


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("normlib", ("batch_norm", "batch_renorm", "group_norm", "instance_norm", "layer_norm", "noisy_batch_norm")),
        ("normlib", ("rms_norm",)),
        ("torch", ("batch_norm", "layer_norm")),
    ],
)
def test_training_gives_the_statistics_that_it_saves(name, norms, mode):
    for op, operator in operators().items():
        if operator.plain.name in norms:
            case, inputs = problem(op, mode)
            outputs, truth = providers()[name].build(case, inputs).outputs(), operator.reference(case, inputs)
            for statistic in operator.saved:
                torch.testing.assert_close(outputs[statistic].double(), truth[statistic], rtol=1e-6, atol=1e-6)


def test_torch_compile_takes_more_shapes_than_the_limit_on_recompilations():
    provider = providers()["torch_compile"]
    with torch._dynamo.config.patch(recompile_limit=2):
        for hidden in (8, 9, 10, 11):
            case = Case("rms_norm", (2, hidden), (), "fp32", "rows", "fwd")
            inputs = operators()["rms_norm"].inputs(case, CPU, 0)
            assert errors_of(case, inputs, provider.build(case, inputs).outputs()) == []


def test_training_forward_saves_for_backward_and_evaluation_does_not():
    requires = []

    def forward(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        requires.append((x.requires_grad, weight.requires_grad, bias.requires_grad, torch.is_grad_enabled()))
        return torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, training=True)

    for mode, expected in (("fwd", (True,) * 4), ("eval", (False,) * 4)):
        requires.clear()
        _autograd.runnable(*problem("batch_norm", mode), forward)
        assert requires == [expected]


def test_backward_by_itself_runs_no_forward():
    calls = []

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        calls.append(1)
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight)

    runnable = _autograd.runnable(*problem("rms_norm", "bwd"), forward)
    for _ in range(3):
        assert set(runnable.run()) == {"dx", "dw"}
    assert len(calls) == 1


def test_what_a_library_lacks_is_unsupported():
    with pytest.raises(Unsupported, match="has no rms_norm"):
        _autograd.bound(problem("rms_norm", "fwd")[0], object())


@pytest.mark.parametrize("op", ["layer_norm_add", "rms_norm_add"])
def test_normlib_adds_a_residual_in_the_norms_own_operator(op, monkeypatch):
    case, inputs = problem(op, "fwd_bwd")
    ran = []
    forward = importlib.import_module("normlib.row_norm").kernels.forward
    monkeypatch.setattr(
        "normlib.row_norm.kernels.forward", lambda *a, **k: (ran.append(k["residual"] is not None), forward(*a, **k))[1]
    )
    providers()["normlib"].build(case, inputs).run()
    assert ran and all(ran)


def test_normlib_runs_a_relu_in_the_norms_own_operator(monkeypatch):
    fused, forward = [], importlib.import_module("normlib.kernels.batch_norm.launch").batch_norm_forward
    monkeypatch.setattr(
        "normlib.kernels.batch_norm.launch.batch_norm_forward",
        lambda *a, **k: (fused.append((k["relu"], k.get("residual") is not None)), forward(*a, **k))[1],
    )
    for op, residual in (("batch_norm_relu", False), ("batch_norm_add_relu", True)):
        fused.clear()
        providers()["normlib"].build(*problem(op, "fwd")).outputs()
        assert fused and set(fused) == {(True, residual)}


def test_normlib_says_what_ran():
    normlib = importlib.import_module("normlib")
    case, inputs = problem("rms_norm", "fwd")
    assert providers()["normlib"].backend(case, inputs) == normlib.backend_for(inputs["x"])


@every_cell
def test_normlib_says_which_kernels_a_call_launches_on_which_grids(op, mode, monkeypatch):
    case, inputs = problem(op, mode)
    cell = providers()["normlib"].build(case, copies(inputs))
    launched = []
    launch = GridExecutor.__call__

    def noted(self, *args, **kwargs):
        launched.append(f"{self.fn.__name__} {'x'.join(map(str, self.grid))}")
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", noted)
    cell.run()
    said = providers()["normlib"].plan(case, inputs)
    assert [kernel for one in said.split("; ") for kernel in one.split(": ")[1].split(", ")] == launched


@pytest.mark.parametrize("op", operators())
def test_on_a_cpu_torch_hands_nothing_on_and_inductor_writes_cpp(op):
    assert providers()["torch"].backend(*problem(op, "fwd")) == "torch"
    assert providers()["torch_compile"].backend(*problem(op, "fwd")) == "inductor-cpp"


def test_without_a_compiler_torch_compile_is_unavailable_on_a_cpu(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert providers()["torch_compile"].unavailable(CPU) == "no C++ compiler: no-such-compiler is not installed"


def test_cudnn_is_unavailable_without_a_gpu():
    assert providers()["cudnn"].unavailable(CPU) == "cuDNN needs an NVIDIA GPU"


@every_cell
def test_cudnn_never_serves_a_cpu_tensor_by_other_means(op, mode):
    with pytest.raises(Unsupported, match="cuDNN needs an NVIDIA GPU"):
        providers()["cudnn"].build(*problem(op, mode))


@pytest.mark.parametrize(
    ("shape", "layout", "text"),
    [((2, 3, 4), "nhwc", "no channels-last"), ((2048, 1024, 1024), "nchw", "2147483647 elements at most")],
)
def test_cudnns_batch_norm_declines_what_pytorchs_binding_cannot_index_or_lay_out(shape, layout, text):
    with pytest.raises(Unsupported, match=text):
        cudnn.batch_norm(Case("batch_norm", shape, (), "fp16", layout, "fwd"), {})


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (
            RuntimeError(
                "Expected tensor for argument #1 'input' to have the same type as tensor for argument #2 'weight'; but "
                "type CUDABFloat16Type does not equal CUDAFloatType (while checking arguments for cudnn_batch_norm)"
            ),
            Unsupported,
            "refused: Expected tensor",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED\nmore"), Unsupported, "CUDNN_STATUS_NOT_SUPPORTED$"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), RuntimeError, "EXECUTION_FAILED"),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "out of memory"),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), torch.AcceleratorError, "illegal"),
    ],
)
def test_cudnns_refusals_are_unsupported_and_its_failures_are_not(error, expected, text):
    def fail() -> None:
        raise error

    with pytest.raises(expected, match=text) as raised:
        cudnn._refusing(fail)
    assert type(raised.value) is expected


def test_without_the_front_end_a_row_norm_is_unsupported_by_name(monkeypatch):
    real: Callable[..., object] = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "cudnn":
            raise ImportError("No module named 'cudnn'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unsupported, match="nvidia-cudnn-frontend cannot be imported: No module named 'cudnn'"):
        _cudnn_rows.rows(*problem("layer_norm", "fwd"))
