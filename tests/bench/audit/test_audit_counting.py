"""What plans declare is what the interpreter counts; and a count that is off by one element is seen."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from subprocess import run as run_process
from sys import executable

import pytest
import torch
from every_kernel import KERNELS

from bench.audit import counting
from bench.audit.calls import Launch, audited
from bench.audit.passes import PASSES
from bench.audit.small_calls import DEVICE, small_calls
from normlib.kernels import traffic
from normlib.kernels.batch_norm import traffic as batch_norm_traffic
from normlib.kernels.row_norm import traffic as row_norm_traffic

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts in the interpreter, which a GPU rules out")


def each(*modes, plans):
    return {(mode, plan) for mode in modes for plan in plans}


EVALUATION = each("eval", "eval_bwd", plans=("one sweep",))
STREAMING = each("fwd", "bwd", plans=("streaming",))
ALONE = each("fwd", "bwd", plans=("one launch",))
BARRIER = "one launch, barrier"
ON_CHIP = ("on chip", "on chip, barrier")
ROWS = each("fwd", "bwd", plans=("rows in registers", "loop over a row"))
# The plans that every operator has, and so those that must be counted.
PLANS = {
    **dict.fromkeys(
        ("batch_norm", "batch_norm_relu", "batch_norm_add_relu"),
        STREAMING | ALONE | each("fwd", "bwd", plans=(BARRIER, *ON_CHIP)) | EVALUATION,
    ),
    # Backward is batch norm's.
    "batch_renorm": STREAMING | each("bwd", plans=("one launch", BARRIER, *ON_CHIP)) | EVALUATION,
    **dict.fromkeys(("lp_norm", "noisy_batch_norm", "sequence_batch_norm"), STREAMING | EVALUATION),
    "sync_batch_norm": STREAMING,  # no launch waits for another process; evaluation is batch norm's
    "group_norm": STREAMING | ALONE,
    "instance_norm": STREAMING | ALONE | EVALUATION,
    "weight_norm": ROWS,  # no row needs another's results, and so no barrier
    **dict.fromkeys(
        ("layer_norm", "layer_norm_add", "partial_rms_norm", "rms_norm", "rms_norm_add"),
        ROWS | {("bwd", "slices, barrier")},
    ),
}


def test_every_byte_that_a_kernel_moves_is_declared(record_property):
    kernels, plans = set(), defaultdict(set)
    for call, device in small_calls(PASSES):
        for count in counting.counts(call, device):
            assert count.problems == [], f"{count.call} {count.mode}"
            kernels.add(count.counted.kernel)
            plans[count.op].add((count.mode, count.plan))
    assert kernels == KERNELS
    assert plans == PLANS


def test_every_operator_is_audited():
    assert PASSES.keys() == audited().keys()


@pytest.mark.parametrize(("op", "declaring"), [("layer_norm", row_norm_traffic), ("batch_norm", batch_norm_traffic)])
def test_a_declaration_that_forgets_one_element_is_found(op, declaring, monkeypatch):
    written = declaring.written
    monkeypatch.setattr(declaring, "written", lambda n: written(n - 1 if n == 12 else n))
    call = Launch(op, (3, 4), "fp32", "rows" if op == "layer_norm" else "nchw")
    problems = [problem for count in counting.counts(call, DEVICE) for problem in count.problems]
    assert any("moves other bytes of y" in problem for problem in problems)
    assert any("moves other bytes of dx" in problem for problem in problems)


def test_a_launch_that_is_not_declared_is_found(monkeypatch):
    declare = batch_norm_traffic.forward
    monkeypatch.setattr(batch_norm_traffic, "forward", lambda *args: declare(*args)[:-1])
    call = Launch("batch_norm", (3, 4), "fp32", "nchw")
    problems = [problem for count in counting.counts(call, DEVICE) for problem in count.problems]
    assert problems == ["_batch_norm_normalize_kernel was launched, no launch is declared"]


def test_a_grid_that_is_not_declared_is_found(monkeypatch):
    declare = row_norm_traffic.forward
    monkeypatch.setattr(row_norm_traffic, "forward", lambda *args: (replace(declare(*args)[0], grid=(7,)),))
    (problem, *_) = next(counting.counts(Launch("rms_norm", (3, 4), "fp32", "rows"), DEVICE)).problems
    assert problem == "_row_norm_forward_kernel has a grid of (1,), declared is (7,)"


def test_declaring_needs_neither_torch_nor_triton():
    folder = str(Path(traffic.__file__).parent)
    names = sorted(file.stem for file in Path(folder).glob("*_traffic.py"))
    code = (
        "import importlib, sys, types\n"
        "for name in ('normlib', 'normlib.kernels'):\n"
        f"    sys.modules[name] = types.ModuleType(name)\n    sys.modules[name].__path__ = [{folder!r}]\n"
        f"for name in {names}:\n"
        "    importlib.import_module(f'normlib.kernels.{name}')\n"
        "print({'torch', 'triton'} & set(sys.modules))"
    )
    done = run_process([executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(names) > 1 and done.stdout.strip() == "set()"
