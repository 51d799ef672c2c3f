"""A barrier among programs that run at the same time, as those of a cooperative launch do.

A program arrives at a counter, and whoever has waited for all to arrive sees what each stored before. The counter says
how many have come and nothing else: no value is ever computed by an atomic operation, and no result depends on who
came first. A thread block's own barrier stands on both sides: before the release, since one thread releases what all
threads stored (https://github.com/triton-lang/triton/issues/6307), and after the acquire, since one thread waits.

A launch finds its counters at zero and leaves them so: the last program to go resets them, and nothing but the launch
itself is queued for a barrier. Where a launch finds them is in host.py.
"""

import triton
import triton.language as tl


@triton.jit
def arrive(counter):
    """Counts this program at the counter (int32, zero before the launch), after all that it has stored."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, programs):
    """Waits until `programs` programs have arrived; what they stored before can then be loaded."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < programs:
        pass
    tl.debug_barrier()


@triton.jit
def leave(left, programs, counter, other=None):
    """Counts this program out at `left`, after its last wait. The last program to leave resets all counters.

    By then nobody looks at them any more.
    """
    if tl.atomic_add(left, 1, sem="relaxed", scope="gpu") == programs - 1:
        tl.atomic_xchg(counter, 0, sem="relaxed", scope="gpu")
        if other is not None:
            tl.atomic_xchg(other, 0, sem="relaxed", scope="gpu")
        tl.atomic_xchg(left, 0, sem="relaxed", scope="gpu")


@triton.jit
def is_last(counter, programs):
    """Counts this program at the counter, after all that it has stored, and returns whether all `programs` have come.

    The one that is told so sees what each stored before, and leaves the counter at zero.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.atomic_and(counter, 0, sem="relaxed", scope="gpu")  # without a result, for which a thread would wait
    tl.debug_barrier()
    return last
