"""The backend of a process; importing again, reloading, forking, spawning, warnings as errors, and threads."""

import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import pytest
import torch

import normlib
from normlib import functional as N

IMPORTED_AGAIN = """
import importlib, pickle, sys
import torch, normlib
x = torch.randn(4, 6, requires_grad=True)
old = normlib.LayerNorm(6)
for name in [n for n in sys.modules if n.split(".")[0] == "normlib"]:
    del sys.modules[name]
import normlib
new = normlib.LayerNorm(6)
assert type(new) is not type(old)
compiled = torch.compile(new, fullgraph=True, backend="aot_eager")
y = new(x)
assert torch.equal(y, old(x)) and torch.equal(y, compiled(x))
y.sum().backward()
new = importlib.reload(importlib.import_module("normlib.layer_norm")).LayerNorm(6)
importlib.reload(normlib)
assert torch.equal(new(x), y)
"""


def python(code, **environment):
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_normlib_is_imported_again_and_reloaded():
    done = python(IMPORTED_AGAIN)
    assert done.returncode == 0, done.stderr


def test_an_operator_whose_arguments_changed_wants_another_process():
    from normlib.dispatch import CustomOperator

    def gains_an_argument(x: torch.Tensor, another: int) -> torch.Tensor:
        return x

    with pytest.raises(RuntimeError, match="layer_norm has other arguments than when it was first imported"):
        CustomOperator("layer_norm", gains_an_argument, gains_an_argument)


WITHOUT_TRITON = """
import os, sys
os.environ.pop("TRITON_INTERPRET", None)
import torch, normlib
assert normlib.convert(torch.nn.Sequential(torch.nn.LayerNorm(6))).converted
x = torch.randn(4, 6, requires_grad=True)
(normlib.LayerNorm(6)(x) + normlib.RMSNorm(6)(x)).sum().backward()
assert normlib.backend_for(x) == "torch"
sys.exit("triton" in sys.modules)
"""


def test_triton_is_imported_by_the_first_kernel_that_runs_and_not_by_normlib():
    done = python(WITHOUT_TRITON)
    assert done.returncode == 0, done.stderr


WORDS = """
import torch, normlib
from triton import knobs
print(normlib.backend_for(torch.zeros(2)), knobs.runtime.interpret)
"""


@pytest.mark.parametrize("word", ["TRUE", "on", "0"])
def test_the_interpreter_runs_by_every_word_that_triton_takes_for_yes(word):
    backend, interprets = python(WORDS, TRITON_INTERPRET=word).stdout.split()
    assert backend == ("interpreter" if interprets == "True" else "torch")


def test_what_runs_can_be_asked():
    # conftest.py has the CPU interpret where there is no GPU.
    assert normlib.backend_for(torch.empty(1)) == ("torch" if torch.cuda.is_available() else "interpreter")
    assert normlib.backend_for(torch.empty(1, device="meta")) == "torch"


@pytest.mark.gpu
def test_a_gpu_tensor_runs_triton():
    assert normlib.backend_for(torch.empty(1, device="cuda")) == "triton"


def answer(pipe):
    pipe.send(one_row().tolist())  # a tensor would stay in the child's memory


def one_row():
    return N.layer_norm(torch.arange(4.0)[None], (4,))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_child_computes_what_its_parent_does(start):
    if start == "fork" and torch.cuda.is_available():
        pytest.skip("a process that has used CUDA cannot fork")
    context = get_context(start)
    mine, theirs = context.Pipe()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # forking beside other threads
        child = context.Process(target=answer, args=(theirs,), daemon=True)
        child.start()
    assert mine.poll(100)
    assert mine.recv() == one_row().tolist()
    child.join()


def test_a_child_forked_while_a_kernel_runs_computes_too():
    from normlib.kernels import traffic

    if not torch.cuda.is_available():
        context = get_context("fork")
        mine, theirs = context.Pipe()
        with traffic._turn:
            child = context.Process(target=answer, args=(theirs,), daemon=True)
            started = threading.Thread(target=child.start)  # another thread: this one has its turn
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                started.start()
                started.join()
            assert mine.poll(100)
        assert mine.recv() == one_row().tolist()
        child.join()


INF = float("inf")
HARD = torch.tensor([[INF, 1.0, 2.0, 3.0], [0.0] * 4, [float("nan")] * 4, [INF] * 4, [3e38, -3e38, 3e38, 1.0]])
CALLS = {
    "layer_norm": lambda x: N.layer_norm(x, (4,), eps=0.0),
    "rms_norm": lambda x: N.rms_norm(x, (4,), eps=0.0),
    "partial_rms_norm": lambda x: N.partial_rms_norm(x, (4,), partial=0.5),
    "batch_norm": lambda x: N.batch_norm(x, None, None, training=True),
    "batch_norm of columns": lambda x: N.batch_norm(x.T.contiguous(), None, None, training=True),
    "batch_renorm": lambda x: N.batch_renorm(x, torch.zeros(4), torch.zeros(4), training=True),
    "lp_norm": lambda x: N.lp_norm(x, None, None, training=True, p=INF),
    "noisy_batch_norm": lambda x: N.noisy_batch_norm(x, None, None, training=True, seed=0),
    "group_norm": lambda x: N.group_norm(x[:, :, None], 2),
    "instance_norm": lambda x: N.instance_norm(x[:, None]),
    "weight_norm": lambda x: N.weight_norm(x, torch.ones(len(x), 1)),
}


@pytest.mark.parametrize("call", CALLS)
def test_infinities_zeros_and_nans_do_not_warn(call):
    x = HARD.clone().requires_grad_()
    with warnings.catch_warnings(action="error"):
        CALLS[call](x).sum().backward()


def test_threads_that_call_several_layers_get_their_own_results():
    layers = [normlib.LayerNorm(6), normlib.BatchNorm2d(4), normlib.GroupNorm(2, 4), normlib.RMSNorm(6)]
    shapes = [(7, 6), (3, 4, 5, 5), (3, 4, 5, 5), (7, 6)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)

    def step(layer, shape):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        return y.detach(), x.grad

    truth = [step(*each) for each in zip(layers, shapes, strict=True)]
    gate = threading.Barrier(4)

    def wrong(i):
        gate.wait()
        order = [(i + j) % 4 for j in range(12)]
        return [k for k in order if not all(map(torch.equal, step(layers[k], shapes[k]), truth[k]))]

    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(wrong, range(4))) == [[]] * 4
    finally:
        sys.setswitchinterval(before)
