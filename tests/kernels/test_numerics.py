import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from normlib.kernels.host import float_pair
from normlib.kernels.numerics import from_pair, store

ROOT = Path(__file__).parents[2]
# What the environment may say.
WORDS = ("1", "true", "TRUE", "yes", "on", "y", "Y", "0", "false", "no", "off", "n", "", "2", None)
INTERPRETS = """
import importlib, json, os, sys
import triton
from triton.runtime.interpreter import InterpretedFunction

def decided():
    sys.modules.pop("normlib.kernels.numerics", None)
    numerics = importlib.import_module("normlib.kernels.numerics")
    return numerics.INTERPRETED.value, isinstance(numerics.load, InterpretedFunction)

found = []
for word in json.loads(sys.argv[1]):
    os.environ.pop("TRITON_INTERPRET", None)
    if word is not None:
        os.environ["TRITON_INTERPRET"] = word
    found.append(decided())
for setting in (True, False):
    os.environ["TRITON_INTERPRET"] = "0" if setting else "1"
    triton.knobs.propagate_env = False
    triton.knobs.runtime.interpret = setting
    found.append(decided())
print(json.dumps(found))
"""


@triton.jit
def _cast_kernel(out_ptr, x_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    store(out_ptr + i, tl.load(x_ptr + i, mask=i < n), i < n)


@triton.jit
def _pair_kernel(out_ptr, high, low):
    tl.store(out_ptr + tl.arange(0, 1), from_pair(high, low, tl.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_store_rounds_to_nearest_even_as_torch_does(dtype, device):
    special = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3.3e38, -3.4e38, 1e-40, -7e-46, float("inf"), float("nan")]
    x = torch.cat([torch.tensor(special), torch.randn(4096) * torch.logspace(-40, 30, 4096)]).to(device)
    out = torch.empty(x.shape, dtype=dtype, device=device)
    _cast_kernel[(1,)](out, x, x.numel(), BLOCK=8192)
    torch.testing.assert_close(out, x.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [1e-5, 0.1, 1 / 3, 1.0, 1e-12])
def test_a_pair_brings_float64_into_a_kernel(value, device):
    out = torch.empty(1, dtype=torch.float64, device=device)
    _pair_kernel[(1,)](out, *float_pair(value))
    assert abs(out.item() - value) <= 2.0**-47 * value


def test_kernels_are_interpreted_exactly_where_triton_interprets():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", INTERPRETS, json.dumps(WORDS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *by_word, when_set, when_unset = json.loads(done.stdout)
    assert by_word == [[word is not None and word.lower() in ("1", "true", "yes", "on", "y")] * 2 for word in WORDS]
    assert when_set == [True, True] and when_unset == [False, False]
