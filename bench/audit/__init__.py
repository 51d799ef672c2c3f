"""`python -m bench.audit`: what every plan moves, and what the compiler makes of every kernel, without a GPU.

Users' calls are recorded on a fake GPU (calls.py). Each launch declares the bytes that it moves, and the interpreter
counts them (counting.py). The launches are compiled for GPUs that are not there (targets.py), and registers, spills and
the widths of loads and stores are read from the machine code (machine_code.py). An ideal cache (cache.py) says how much
of a batch-norm plan's second sweep reaches device memory, and bounds.py what no plan could avoid. Where constants of a
target's device have been measured, expected.py makes microseconds of that. A fused operator stands beside the pair that
it replaces (fused.py); and where there is a GPU with `ncu`, hardware counters beside the model (counters.py).
"""
