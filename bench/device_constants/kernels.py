"""The kernels that device constants are measured with: sweeps, barriers, an empty one.

They do only what shows the cost that a launch of normlib's own kernels has to pay; normlib launches none of them.
"""

import triton
import triton.language as tl

from normlib.kernels.barrier import arrive, leave, wait


@triton.jit
def empty_kernel():
    """Does nothing."""


@triton.jit(do_not_specialize=["rounds"])
def read_kernel(
    sums_ptr,  # (programs,) float32: what each program has read, added up
    x_ptr,  # (n,) float32
    n,
    rounds,  # times that all of x is read
    BLOCK: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(rounds):
        for start in range(program * BLOCK, n, programs * BLOCK):
            i = start + tl.arange(0, BLOCK)
            # Past the multiprocessors' own caches, which together hold what a second round reads.
            total += tl.load(x_ptr + i, i < n, 0.0, cache_modifier=".cg")
    tl.store(sums_ptr + program, tl.sum(total))


@triton.jit(do_not_specialize=["rounds"])
def copy_kernel(
    y_ptr,  # (n,) float32
    x_ptr,  # (n,) float32
    n,
    rounds,  # times that all of x is copied
    BLOCK: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    for _ in range(rounds):
        for start in range(program * BLOCK, n, programs * BLOCK):
            i = start + tl.arange(0, BLOCK)
            tl.store(y_ptr + i, tl.load(x_ptr + i, i < n, 0.0, cache_modifier=".cg"), i < n)


@triton.jit(do_not_specialize=["waits"])
def barriers_kernel(
    seen_ptr,  # (programs,) int32: arrivals that each program counts after its last wait, waits * programs of them
    counters_ptr,  # (2,) int32 zeros, and left as zeros: arrived, left
    waits,  # times that every program waits for all the others
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    for i in range(waits):
        arrive(counters_ptr)
        wait(counters_ptr, (i + 1) * programs)
    # After the last wait no program arrives any more, and none resets the counter before this program has left.
    tl.store(seen_ptr + program, tl.atomic_add(counters_ptr, 0, sem="relaxed", scope="gpu"))
    leave(counters_ptr + 1, programs, counters_ptr)
