"""From call to launch: a new batch size compiles nothing, few kernels are launched, and nobody waits for the device.

Run as a program it prints what Triton would compile and launch for a GPU that is not there: that takes a process in
which Triton does not interpret.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import triton

from normlib import functional

ROOT = Path(__file__).parents[2]
# Ones, multiples of 16 and others: what Triton would specialize an argument on. For plans of an H200 they go from one
# program or split to as many as there are.
BATCHES = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 64, 100, 128, 256, 1000, 1024, 4096)
# A second stage adds 16 or 64 partial results at a time. Batch norm in one launch has a barrier or none, and narrower
# channel groups where the tensor outgrows the cache. Nothing else that a plan chooses may follow the batch size.
VARIANTS = 3
LAUNCHES = {
    "rows": {"forward": 1, "backward": 2},
    "rows beyond the registers": {"forward": 1, "backward": 3},
    "batch norm, training": {"forward": 3, "backward": 3},
    "batch norm, evaluation": {"forward": 1, "backward": 2},
}
# Operators by which a host waits for the device, as the dispatcher names them.
WAITING = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}


def row_norm(name, columns, dtype, batch, device="cpu"):
    """(y, its inputs): a norm of `batch` rows."""
    x = torch.empty(batch, columns, dtype=dtype, device=device, requires_grad=True)
    weight, bias = (torch.ones(columns, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
    if name == "layer_norm":
        return functional.layer_norm(x, (columns,), weight, bias), (x, weight, bias)
    return functional.rms_norm(x, (columns,), weight, 1e-5), (x, weight)


def batch_norm(channels, positions, last, training, batch, device="cpu"):
    """(y, its inputs): batch norm of `batch` images."""
    shape = (batch, *positions, channels) if last else (batch, channels, *positions)
    x = torch.empty(shape, device=device)
    x = (x.movedim(-1, 1) if last else x).requires_grad_()
    weight, bias = (torch.ones(channels, device=device, requires_grad=True) for _ in range(2))
    mean, var = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    return functional.batch_norm(x, mean, var, weight, bias, training), (x, weight, bias)


ROWS = list(product(("layer_norm", "rms_norm"), (64, 99, 5120, 20000), (torch.float32, torch.bfloat16)))
IMAGES = [
    *product((64, 65), ((), (5,)), (False,), (True, False)),
    *product((3, 64, 65), ((7, 7), (8, 8)), (True, False), (True, False)),
]
CASES = {f"{name} {n} {dtype}": partial(row_norm, name, n, dtype) for name, n, dtype in ROWS} | {
    f"batch_norm {c} {s} {'nhwc' if last else 'nchw'} {'training' if training else 'evaluation'}": partial(
        batch_norm, c, s, last, training
    )
    for c, s, last, training in IMAGES
}
COUNTED = {
    "rows": [partial(row_norm, "layer_norm", 64, torch.float32), partial(row_norm, "rms_norm", 64, torch.float32)],
    "rows beyond the registers": [partial(row_norm, "layer_norm", 20000, torch.float32)],
    "batch norm, training": [partial(batch_norm, 64, (7, 7), last, True) for last in (False, True)],
    "batch norm, evaluation": [partial(batch_norm, 64, (7, 7), last, False) for last in (False, True)],
}


def gradients(y, inputs):
    return torch.autograd.grad(y, inputs, torch.empty_like(y))


# Two planted mistakes, the first among the kernels of one case.
PLANTED_IN = "rms_norm 64 torch.float32"


@triton.jit
def _specialized_kernel(x_ptr, M):
    pass


def waits(x):
    return functional.layer_norm(x, (64,), eps=1e-5 + float(x.sum()))


def print_launches():
    """What happens for a GPU that is not there, as JSON."""
    from bench.absent_gpu import absent_gpu
    from bench.host_overhead import count

    compiled = {}
    for name, case in CASES.items():
        with absent_gpu() as found:
            for batch in BATCHES:
                if batch > 1 or "() nchw training" not in name:  # PyTorch refuses one value a channel
                    gradients(*case(batch))
                if name == PLANTED_IN:
                    _specialized_kernel[(1,)](torch.empty(batch), batch)
        compiled[name] = [(c.kernel, repr(c.plan), c.key) for c in found]
    counted, operators = defaultdict(list), {}
    with absent_gpu():
        for name, cases in COUNTED.items():
            for case in cases:
                forward, called, _ = count(partial(case, 32))
                both, also_called, _ = count(lambda case=case: gradients(*case(32)))
                counted[name].append({"forward": forward, "backward": both[len(forward) :]})
                operators[f"{name} {len(counted[name])}"] = called + also_called
        operators["planted"] = count(partial(waits, torch.ones(8, 64)))[1]
    json.dump({"compiled": compiled, "counted": counted, "operators": operators}, sys.stdout)


@pytest.fixture(scope="module")
def found():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def compilations(compiled):
    """{kernel: {plan: keys}} of one case, the planted kernel apart."""
    several = defaultdict(lambda: defaultdict(set))
    for kernel, plan, key in compiled:
        several[kernel][plan].add(key)
    return several, several.pop("_specialized_kernel", {})


@pytest.mark.parametrize("case", CASES)
def test_a_new_batch_size_compiles_nothing_unless_the_plan_changes(case, found):
    kernels, _ = compilations(found["compiled"][case])
    assert kernels
    assert [(name, plan) for name, plans in kernels.items() for plan, keys in plans.items() if len(keys) > 1] == []


def test_a_kernel_that_is_specialized_on_the_batch_size_is_found(found):
    _, planted = compilations(found["compiled"][PLANTED_IN])
    assert [len(keys) for keys in planted.values()] == [3]  # for a 1, for multiples of 16, for the others


@pytest.mark.parametrize("case", CASES)
def test_over_all_batch_sizes_a_kernel_has_few_plans(case, found):
    plans, _ = compilations(found["compiled"][case])
    assert {kernel: len(several) for kernel, several in plans.items() if len(several) > VARIANTS} == {}
    if not case.startswith("batch_norm"):  # what runs over the rows has one plan, whatever their number
        assert {len(several) for kernel, several in plans.items() if kernel != "_sum_partials_kernel"} == {1}


@pytest.mark.parametrize("what", LAUNCHES)
def test_a_call_launches_no_more_kernels_than_its_plan_needs(what, found):
    for counted in found["counted"][what]:
        launches = {way: len(kernels) for way, kernels in counted.items()}
        assert all(0 < launches[way] <= most for way, most in LAUNCHES[what].items()), counted


def test_no_call_asks_for_a_value_on_the_host(found):
    asked = {name: WAITING & set(operators) for name, operators in found["operators"].items()}
    assert asked.pop("planted")
    assert asked and not any(asked.values())


@pytest.mark.gpu
@pytest.mark.parametrize("what", COUNTED)
def test_no_call_waits_for_the_device(what):
    for case in COUNTED[what]:
        gradients(*case(32, device="cuda"))  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            gradients(*case(32, device="cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    print_launches()
