"""Expects how fast a pass is from its kernels' machine code, by simulation: nothing is run, and nothing measured.

Triton's compiler leaves in SASS how long each instruction holds its warp back and which results it waits for (sass.py).
Some multiprocessors of an H200 execute that, cycle by cycle, with their issue slots, pipes, barriers, and queues for L2
and DRAM (sim.c, simulator.py); how often each loop runs follows from a launch's arguments (trips.py).

It cannot tell clocks that fall, address translation, bank conflicts, accesses that do not coalesce, contention at a
counter, or what spinning at a barrier costs. Where masked lanes load nothing it counts them as if they did. Below 10 us
only the order of two figures counts. error.csv has what it expected of kernels whose times others have published.
"""
