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
from math import inf
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
    "weight norm": {"forward": 1, "backward": 1},
    "batch norm, training": {"forward": 3, "backward": 3},
    "batch norm, evaluation": {"forward": 1, "backward": 2},
    "batch renorm": {"forward": 3, "backward": 4},  # one more for r and d in the weight's gradient
    "noisy batch norm": {"forward": 3, "backward": 3},
    "lp norm": {"forward": 3, "backward": 3},
    "lp norm, evaluation": {"forward": 1, "backward": 2},
    "group norm": {"forward": 1, "backward": 2},
    "group norm, split": {"forward": 3, "backward": 4},
    "instance norm": {"forward": 2, "backward": 2},  # one more for the running statistics
}
# Operators by which a host waits for the device, as the dispatcher names them.
WAITING = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}


def row_norm(name, columns, dtype, batch, device="cpu"):
    """(y, its inputs): a norm of `batch` rows."""
    x = torch.empty(batch, columns, dtype=dtype, device=device, requires_grad=True)
    weight, bias = (torch.ones(columns, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
    if name == "layer_norm":
        return functional.layer_norm(x, (columns,), weight, bias), (x, weight, bias)
    return getattr(functional, name)(x, (columns,), weight, 1e-5), (x, weight)


def weight_norm(columns, dtype, rows, device="cpu"):
    """(y, its inputs): weight norm, whose rows are no batch but follow a layer's width."""
    v, g = (torch.empty(rows, n, dtype=dtype, device=device, requires_grad=True) for n in (columns, 1))
    return functional.weight_norm(v, g), (v, g)


def groups_of(size):
    return lambda x, mean, var, *parameters: functional.group_norm(x, len(mean) // size, *parameters)


# Of x, running_mean, what else runs, weight and bias; a limit as a tensor is what a schedule gives.
IMAGE_NORMS = {
    "batch_norm training": partial(functional.batch_norm, training=True),
    "batch_norm evaluation": functional.batch_norm,
    "batch_renorm training": lambda x, *rest: functional.batch_renorm(x, *rest, True, rmax=x.new_full((), 2.0)),
    "batch_renorm evaluation": functional.batch_renorm,
    "noisy_batch_norm training": partial(functional.noisy_batch_norm, training=True),
    "lp_norm_1 training": partial(functional.lp_norm, training=True, p=1),
    "lp_norm_inf training": partial(functional.lp_norm, training=True, p=inf),
    "lp_norm_inf evaluation": partial(functional.lp_norm, p=inf),
    "group_norm of 3": groups_of(3),
    "group_norm of 8": groups_of(8),
    "instance_norm": functional.instance_norm,
    "sequence_batch_norm": lambda x, *rest: functional.sequence_batch_norm(x.flatten(2).permute(2, 0, 1), *rest, True),
}


def image_norm(name, channels, positions, last, batch, device="cpu"):
    """(y, its inputs): a norm of `batch` images."""
    shape = (batch, *positions, channels) if last else (batch, channels, *positions)
    x = torch.empty(shape, device=device)
    x = (x.movedim(-1, 1) if last else x).requires_grad_()
    weight, bias = (torch.ones(channels, device=device, requires_grad=True) for _ in range(2))
    mean, var = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    return IMAGE_NORMS[name](x, mean, var, weight, bias), (x, weight, bias)


ROWS = list(product(("layer_norm", "rms_norm"), (64, 99, 5120, 20000), (torch.float32, torch.bfloat16)))
ROWS += [("partial_rms_norm", n, torch.bfloat16) for n in (99, 20000)]
BATCH_NORMS = ("batch_norm training", "batch_norm evaluation")
OTHERS = [name for name in IMAGE_NORMS if name not in (*BATCH_NORMS, "group_norm of 8")]
IMAGES = [
    *product(BATCH_NORMS, (64, 65), ((), (5,)), (False,)),
    *product(BATCH_NORMS, (3, 64, 65), ((7, 7), (8, 8)), (True, False)),
    *product(OTHERS, (63,), ((7, 7), (8, 8)), (True, False)),
    *product(("group_norm of 8",), (16,), ((28, 28),), (True, False)),  # which are split while images are few
]
CASES = (
    {f"{name} {n} {dtype}": partial(row_norm, name, n, dtype) for name, n, dtype in ROWS}
    | {f"weight_norm {n}": partial(weight_norm, n, torch.float32) for n in (64, 99, 20000)}
    | {
        f"{name} {c} {s} {'nhwc' if last else 'nchw'}": partial(image_norm, name, c, s, last)
        for name, c, s, last in IMAGES
    }
)


COUNTED = {
    "rows": [partial(row_norm, name, 64, torch.float32) for name in ("layer_norm", "rms_norm", "partial_rms_norm")],
    "rows beyond the registers": [partial(row_norm, "layer_norm", 20000, torch.float32)],
    "weight norm": [partial(weight_norm, 64, torch.float32)],
    "group norm, split": [partial(image_norm, "group_norm of 8", 16, (28, 28), False)],
}
for what, names in {
    "batch norm, training": ("batch_norm training", "sequence_batch_norm"),
    "batch norm, evaluation": ("batch_norm evaluation", "batch_renorm evaluation"),
    "batch renorm": ("batch_renorm training",),
    "noisy batch norm": ("noisy_batch_norm training",),
    "lp norm": ("lp_norm_1 training", "lp_norm_inf training"),
    "lp norm, evaluation": ("lp_norm_inf evaluation",),
    "group norm": ("group_norm of 8",),
    "instance norm": ("instance_norm",),
}.items():
    COUNTED[what] = [partial(image_norm, name, 64, (7, 7), last) for name, last in product(names, (False, True))]


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
    """Prints compilations, launches and operators for a fake GPU, as JSON."""
    from bench.fake_gpu import absent_gpu
    from bench.host_overhead import count

    compiled = {}
    for name, case in CASES.items():
        with absent_gpu() as found:
            for batch in BATCHES:
                if batch > 1 or not ("training" in name and "()" in name):  # PyTorch refuses one value a channel
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
    if case in {" ".join(map(str, row)) for row in ROWS}:  # what runs over the rows has one plan, however many they are
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
