"""Every kernel compiles for GPUs that are not here, without spills, and loads as wide as the shape allows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from normlib.kernels import batch_norm, reduction, row_norm

ROOT = Path(__file__).parents[2]
KERNELS = {name for m in (batch_norm, row_norm, reduction) for name in vars(m) if name.endswith("_kernel")}
# Second stages, which read a few partial results and no activation.
SECOND_STAGES = {"_batch_norm_merge_kernel", "_sum_partials_kernel"}


def audit(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.audit", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_kernel_compiles_without_spills_and_loads_wide(target):
    done = audit("--target", target, "--json")
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert kernels, done.stderr
    assert {k["kernel"] for k in kernels} == KERNELS
    assert [k for k in kernels if k["spill"]] == []
    narrow = [k for k in kernels if k["wide"] and k["load_bits"] < 128 and k["kernel"] not in SECOND_STAGES]
    assert narrow == []
    assert done.returncode == 0


def test_an_unknown_target_is_named():
    done = audit("--target", "sm_12")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip() == "bench.audit: error: --target: 'sm_12' is not one of sm_80, sm_90, sm_100, gfx942"
