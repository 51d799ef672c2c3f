"""`python -m bench.audit`: what every plan moves, and what the compiler makes of every kernel, on no GPU.

The plan of each call declares the bytes of its launches (kernels/*_traffic.py), and the interpreter counts them
(counting.py). The launches are compiled for GPUs that are not there (compiling.py), and registers, spills and the
widths of loads and stores are read from the machine code (machine_code.py). An ideal cache (cache.py) says how much of
a batch-norm plan's second sweep reaches device memory, and bounds.py what no plan could avoid. Where constants of a
target's device have been measured, expected.py makes microseconds of that. A fused operator stands beside the pair that
it replaces (fused.py); and where there is a GPU with `ncu`, hardware counters beside the model (counters.py).
"""
