"""Bugs planted in the kernels on purpose, to see whether the accuracy gate notices each: `python -m bench.mutants`.

A mutant (planting.py) is an edit of the kernels' present source, so it is data: catalogue.py gathers them. gate.py runs
each through cells of bench.measure.cell until one of them is not "ok"; a mutant that passes all of them fails the run.

Left out is an edit that is no bug: a wrong first mean of a row does no harm (the second pass over the row takes out
whatever the first one missed), nor does another first mean where means are merged in float64, nor a mask beside a
factor that is zero. And two bugs that this gate cannot see:

- 32-bit offsets, which take tensors of 2^31 elements (tests/kernels/test_addressing.py has them);
- evaluation's backward, which is no mode of the gate (tests/kernels/test_batch_norm.py).
"""
