"""The libraries to compare with are called as declared, keep the contract, and are imported by nothing else."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import runpy
import sys
from dataclasses import replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import peer_stand_ins
import pytest
import torch
from peer_signatures import record
from provider_cells import CPU, copies, errors_of, problem

from bench.cases.case import Case
from bench.cases.operators import Inputs, operators
from bench.measure import accuracy
from bench.measure.providers import Unsupported, providers
from bench.measure.providers._peer import Peer

PEERS = {name: provider for name, provider in providers().items() if isinstance(provider, Peer)}
SERVED = [(name, op, mode) for name, p in PEERS.items() for op in p.natives for mode in operators()[op].modes]
every_served_cell = pytest.mark.parametrize(("name", "op", "mode"), SERVED, ids=["-".join(cell) for cell in SERVED])
every_peer = pytest.mark.parametrize("name", PEERS)


def with_a_large_eps(op: str, mode: str) -> tuple[Case, Inputs]:
    """A problem in which a library's default eps shows."""
    case, inputs = problem(op, mode)
    return replace(case, eps=0.25), inputs


@pytest.fixture
def here(monkeypatch):
    """Makes a peer available on this machine's CPU, as if a GPU were there."""

    def make(name: str) -> Peer:
        monkeypatch.setattr(type(PEERS[name]), "unavailable", lambda self, device: None)
        return PEERS[name]

    return make


@pytest.fixture
def stand_in(here, monkeypatch):
    """The same with stand-ins in the library's place."""

    def make(name: str) -> Peer:
        peer_stand_ins.put(name, monkeypatch)
        return here(name)

    return make


@every_served_cell
def test_calls_bind_to_the_recorded_signatures_and_the_contract_is_kept(stand_in, name, op, mode):
    case, inputs = with_a_large_eps(op, mode)
    before = copies(inputs)
    runnable = stand_in(name).build(case, inputs)
    for _ in range(2):
        assert set(runnable.run()) >= set(operators()[op].outputs(mode))
    assert all(torch.equal(inputs[tensor], before[tensor]) for tensor in inputs)
    for tensor, fresh in operators()[op].inputs(case, CPU, seed=1).items():
        inputs[tensor].copy_(fresh)
    first, second = runnable.outputs(), runnable.outputs()
    assert errors_of(case, inputs, first) == []
    assert all(torch.equal(first[tensor], second[tensor]) for tensor in first)


@every_peer
def test_every_entry_point_has_a_record_and_every_record_an_entry_point(name):
    called = {entry for native in PEERS[name].natives.values() for entry in native.entry_points}
    assert called == set(record.read(name)["entry_points"])
    assert record.read(name)["package"] == PEERS[name].package


@every_peer
def test_what_is_installed_is_what_was_recorded(name):
    """Read from the library's source: most of them cannot be imported without a GPU."""
    module = PEERS[name].modules[0]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{module} is not installed")
    folder = Path(spec.submodule_search_locations[0]).parent
    for entry in record.read(name)["entry_points"].values():
        assert record.again(folder, entry).items() <= entry.items()


def test_a_library_calls_its_compiled_functions_with_as_many_arguments_as_are_recorded():
    for entry in record.read("transformer_engine")["entry_points"].values():
        names = [parameter for parameter in entry["signature"].split(", ") if parameter != "/"]
        assert len(entry["call"].split(", ")) == len(names)


@every_peer
def test_what_a_library_lacks_is_unsupported_with_a_reason_and_is_not_put_together(stand_in, name):
    peer = stand_in(name)
    lacking = [op for op in operators() if op not in peer.natives]
    assert lacking
    for op in lacking:
        case, inputs = problem(op, "fwd")
        with pytest.raises(Unsupported, match=r"\w+ "):
            peer.build(case, inputs)


class ImportsFail(MetaPathFinder, Loader):
    """Finds these modules, and fails as soon as one is imported."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self._modules = modules

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in self._modules else None

    def exec_module(self, module: object) -> None:
        raise ImportError("libgone.so: cannot open shared object file")


@pytest.fixture
def broken(monkeypatch):
    """Installs a peer that cannot be imported."""

    def make(name: str) -> Peer:
        modules = PEERS[name].modules
        for loaded in [m for m in sys.modules if m.partition(".")[0] in modules]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setattr(sys, "meta_path", [ImportsFail(modules), *sys.meta_path])
        return PEERS[name]

    return make


@every_peer
def test_asking_whether_a_library_is_there_imports_nothing_of_it(broken, name):
    file = inspect.getfile(type(broken(name)))
    provider = runpy.run_path(file)["PROVIDERS"][0]
    assert provider.unavailable(CPU) == f"{provider.package} needs a GPU"
    assert provider.version()
    for op in operators():
        assert provider.backend(*problem(op, "fwd"))


@every_peer
def test_a_library_that_cannot_be_imported_is_unsupported_and_says_why(broken, here, name):
    broken(name)
    case, inputs = problem(next(iter(PEERS[name].natives)), "fwd")
    with pytest.raises(Unsupported, match=r"cannot give .*: libgone\.so: cannot open shared object file"):
        here(name).build(case, inputs)


@every_peer
def test_an_entry_point_that_is_gone_is_unsupported_and_named(stand_in, name):
    peer = stand_in(name)
    entry = next(iter(peer.natives.values())).entry_points[0]
    module, _, path = entry.partition(":")
    vars(sys.modules[module]).pop(path.partition(".")[0])
    case, inputs = problem(next(iter(peer.natives)), "fwd")
    with pytest.raises(Unsupported, match=f"{peer.package} .* cannot give {entry}: "):
        peer.build(case, inputs)


def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert PEERS["liger"].unavailable(CPU) == "the module liger_kernel is not installed (pip install liger-kernel)"


def test_a_library_without_its_compiled_part_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec("apex", None) if name == "apex" else None)
    assert "fused_layer_norm_cuda is not installed" in str(PEERS["apex"].unavailable(CPU))


@pytest.mark.parametrize(
    ("capability", "hip", "reason"),
    [
        ((7, 5), None, "quack-kernels needs compute capability 8.0 or more"),
        ((9, 4), "7.0", "quack-kernels needs an NVIDIA GPU"),
        ((9, 0), None, None),
    ],
)
def test_quack_needs_an_nvidia_gpu_that_its_compiler_knows(monkeypatch, capability, hip, reason):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert PEERS["quack"].unavailable(torch.device("cuda")) == reason


@pytest.mark.parametrize(
    ("name", "op", "mode", "dtype", "hidden", "reason"),
    [
        ("quack", "layer_norm", "fwd", "bf16", 1024, "float32 parameters only"),
        ("quack", "rms_norm", "fwd", "bf16", 1024, None),
        ("quack", "layer_norm", "fwd", "fp32", 1024, None),
        ("liger", "rms_norm", "fwd", "bf16", 65536, None),
        ("liger", "rms_norm", "fwd", "bf16", 65537, "65536 columns at most"),
        ("flash_linear_attention", "rms_norm", "fwd", "bf16", 32768, None),
        ("flash_linear_attention", "rms_norm", "fwd", "bf16", 32769, "65536 bytes at most"),
        ("flash_linear_attention", "layer_norm", "fwd", "fp32", 16385, "65536 bytes at most"),
        ("flag_gems", "batch_norm", "bwd", "fp16", 64, "gradients in x's dtype"),
        ("flag_gems", "batch_norm", "fwd_bwd", "bf16", 64, "gradients in x's dtype"),
        ("flag_gems", "batch_norm", "fwd", "fp16", 64, None),
    ],
)
def test_a_case_beyond_a_librarys_limits_is_refused(name, op, mode, dtype, hidden, reason):
    case, _ = problem(op, mode, dtype)
    refusal = PEERS[name].refusal(replace(case, shape=(2, hidden)))
    assert refusal is None if reason is None else reason in str(refusal)


@pytest.mark.parametrize("name", ["NVTE_NORM_FWD_USE_CUDNN", "NVTE_NORM_BWD_USE_CUDNN"])
def test_cudnns_kernels_are_not_measured_under_transformer_engines_name(monkeypatch, name):
    case, _ = problem("layer_norm", "fwd")
    monkeypatch.setenv(name, "0")
    assert PEERS["transformer_engine"].refusal(case) is None
    monkeypatch.setenv(name, "1")
    assert PEERS["transformer_engine"].refusal(case) == f"{name} is set, with which it runs cuDNN's kernels"


def test_the_record_names_the_entry_points_that_a_mode_runs():
    def backend(name: str, op: str, mode: str) -> str:
        return PEERS[name].backend(*problem(op, mode))

    assert backend("liger", "layer_norm", "bwd") == "liger: LigerLayerNormFunction.apply"
    assert backend("liger", "rms_norm", "fwd").endswith("casting_mode=gemma, in_place=False")
    assert backend("quack", "layer_norm", "fwd") == "quack: layernorm_fwd"
    assert backend("quack", "layer_norm", "bwd") == "quack: layernorm_bwd"
    assert backend("quack", "layer_norm", "fwd_bwd") == "quack: layernorm_fwd, layernorm_bwd"
    assert backend("flag_gems", "batch_norm", "eval") == "flag_gems: batch_norm"


# The real library's own kernels, in the interpreter. Two things are lacking there, and lent to it: a float argument is
# a float32 tensor on a GPU and a Python float in the interpreter, and libdevice has no rsqrt without a GPU.
@pytest.fixture
def liger(here, monkeypatch):
    pytest.importorskip("liger_kernel")
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def with_floats(argument: object) -> object:
        if not isinstance(argument, float):
            return convert(argument)
        handle = interpreter.TensorHandle(np.array([argument], np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    monkeypatch.setattr(interpreter, "_implicit_cvt", with_floats)
    for native in PEERS["liger"].natives.values():
        module = importlib.import_module(native.entry_points[0].partition(":")[0])
        monkeypatch.setattr(module, "rsqrt", lambda x: tl.rsqrt(x))
    return here("liger")


@pytest.mark.parametrize(("op", "mode"), [(op, mode) for name, op, mode in SERVED if name == "liger"])
def test_liger_itself_is_right_and_leaves_its_inputs_alone(liger, op, mode):
    case, inputs = with_a_large_eps(op, mode)
    before = copies(inputs)
    runnable = liger.build(case, inputs)
    runnable.run()
    assert errors_of(case, inputs, runnable.outputs()) == []
    assert all(torch.equal(inputs[tensor], before[tensor]) for tensor in inputs)


@pytest.mark.parametrize("op", PEERS["liger"].natives)
def test_liger_as_it_is_set_rounds_once_in_16_bits(liger, op):
    case, inputs = problem(op, "fwd_bwd", "fp16")
    outputs = liger.build(case, inputs).outputs()
    operator = operators()[op]
    truth = operator.reference(case, inputs)
    wanted = {name: truth[name] for name in operator.outputs("fwd_bwd")}
    errors = accuracy.check(outputs, wanted, operator.dtypes(inputs), None, operator.statistics_dim)
    assert [error.tensor for error in errors if not error.ok] == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ("fp32", "fp16", "bf16"))
@pytest.mark.parametrize(
    ("name", "op", "mode"), [*SERVED, *(("cudnn", op, mode) for op, o in operators().items() for mode in o.modes)]
)
def test_an_installed_library_is_near_the_truth_or_says_that_it_does_not_serve_the_case(name, op, mode, dtype):
    gpu, operator = torch.device("cuda"), operators()[op]
    shape = (8, 64, 14, 14) if op == "batch_norm" else (64, 1024)
    case = Case(op, shape, (), dtype, operator.layouts[-1], mode)
    inputs = operator.inputs(case, gpu, 0)
    try:
        runnable = providers()[name].build(case, inputs)
    except Unsupported as reason:
        pytest.skip(str(reason))
    runnable.run()
    outputs, truth = runnable.outputs(), operator.reference(case, inputs)
    for tensor in operator.outputs(mode):
        relative = float((outputs[tensor].double() - truth[tensor]).norm() / truth[tensor].norm())
        # Only for gross errors: whether a last bit is right is for the bench to judge.
        assert relative < {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}[dtype], tensor
