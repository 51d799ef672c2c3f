"""The steps of test_precompile.py that need a process of their own: one of them by its name, told of in JSON."""

import json
import sys

import torch

from bench.cases import sweep
from bench.cases.operators import operators
from bench.fake_gpu import H200, H200_TARGET, absent_gpu, planned_for
from bench.measure import launches, precompile
from bench.measure.providers.normlib import forward_of

TYPED = {
    "bn": {"op": "bn", "batch": "32", "channels": "64", "spatial": "14x14", "dtype": "fp16", "layout": "nhwc"},
    "ln": {"op": "ln", "tokens": "512", "hidden": "1024", "dtype": "bf16"},
}


def cases(name, mode="fwd,bwd"):
    return sweep.cases(sweep.parse({**TYPED[name], "mode": mode}, operators(), "quick"), operators())


def _run(case, modes):
    """Runs the passes of a case's call up to the last one of these modes, on memory that nobody touches."""
    operator = operators()[case.op]
    inputs = launches.untouched(operator, case)
    for mode, run in launches.passes(operator, case.problem, forward_of, inputs):
        run()
        if mode == modes[-1]:
            return


def compile_kernels():
    """As a process does that compiles ahead for an H200."""
    for name in TYPED:
        precompile.compile_kernels(cases(name), H200, H200_TARGET)


def launch():
    """The same calls by Triton's own driver, on the library that tests/kernels/absent_cuda.c is made to."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    class Driver(CudaDriver):
        def __init__(self):
            super().__init__()
            self.get_current_device = lambda: 0
            self.get_current_stream = lambda device: 0

        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

    driver.set_active(Driver())
    for name in TYPED:
        for case in cases(name):
            with planned_for(H200):
                _run(case, (case.mode,))


def plainly():
    """Makes Inductor's C++ quick to compile: no headers compiled beforehand, no search for vector instructions."""
    from torch._inductor import config, cpu_vec_isa

    config.cpp_cache_precompile_headers = False
    cpu_vec_isa.valid_vec_isa_list = list


def compile_graph():
    plainly()
    precompile.compile_graph(cases("bn", "fwd")[0], torch.device("cpu"))


def run_graph():
    """Prints what Inductor's cache gave, and how many graphs Dynamo made, for forward and backward alone."""
    from torch._dynamo.utils import counters

    from bench.measure.providers import providers

    plainly()
    forward, backward = cases("bn")
    inputs = operators()["batch_norm"].inputs(forward, torch.device("cpu"), 0)
    for case in (forward, backward):
        providers()["torch_compile"].build(case, inputs)
    found = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}
    print(json.dumps({**found, "graphs": counters["stats"]["unique_graphs"]}))


def specializations():
    """Prints, by operator, how many kernels Triton tells apart in the smallest preset, and how many we do."""
    from bench.measure.specializations import PASSES, kernels

    counts = {}
    for op in operators():
        every = sweep.cases(sweep.parse({"op": op}, operators(), "smoke"), operators())
        every += sweep.cases(sweep.parse({"op": op}, operators(), "quick"), operators())
        with absent_gpu() as found:
            for case in every:
                _run(case, PASSES[case.mode])
        ours = set().union(*(kernels(case, H200) for case in every))
        counts[op] = len({(one.kernel, one.key) for one in found}), len(ours)
    print(json.dumps(counts))


def real_calls():
    """Prints, by operator, how many kernels real calls need and those on untouched memory lack, and vice versa."""
    from bench.measure.providers import providers
    from bench.measure.specializations import PASSES

    differ = {}
    for op in operators():
        every = sweep.cases(sweep.parse({"op": op}, operators(), "smoke"), operators())
        real, untouched = set(), set()
        for case in every:
            inputs = operators()[op].inputs(case, torch.device("cpu"), 0)
            with absent_gpu() as found:
                providers()["normlib"].build(case, inputs).outputs()
            real |= {(one.kernel, one.key) for one in found}
            with absent_gpu() as found:
                _run(case, PASSES[case.mode])
            untouched |= {(one.kernel, one.key) for one in found}
        differ[op] = len(real - untouched), len(untouched - real)
    print(json.dumps(differ))


if __name__ == "__main__":
    globals()[sys.argv[1]]()
