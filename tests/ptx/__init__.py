"""Executes compiled kernels without a GPU: the PTX that Triton makes for sm_90, over all threads, in NumPy.

The interpreter runs a kernel's source; here what the compiler made of it is run. Results are compared with float64, and
what no interpreter shows is looked for: data races, deadlocks between programs that wait for each other, accesses out
of bounds or misaligned, shared memory read before it was written, and results that depend on the order of programs or
warps.

    parsing      PTX as instructions, in blocks
    translation  a block as a Python function of NumPy arrays, with an element for each thread
    arithmetic   what NumPy lacks: fma, bfloat16, roundings
    memory       global memory, who touched a word last, and copies that are under way
    machine      control flow, barriers and atomics of some thread blocks at a time
    emulated     launches of normlib's kernels, executed instead of launched
    cases        the calls that are judged: every small call of bench/audit/calls.py
    planted      kernels with bugs that must be found

What this cannot tell: ptxas makes machine code of the PTX, and its order, spills and fused products (but for
`contract`) are unseen. Memory is sequentially consistent here: a missing release or acquire is found by vector clocks,
not by a stale value. Orders are samples, and all programs of a launch are resident. `.ftz` flushes nothing. What is not
implemented raises `Unsupported` with the instruction: a new one is a method `op_NAME` of translation.Translator, a new
modifier a word of parsing.MODIFIERS.
"""
