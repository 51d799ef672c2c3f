"""The names of all kernels, found by themselves, so that a new one cannot be left out of what must reach it."""

from importlib import import_module
from pathlib import Path

from normlib import kernels

SOURCES = Path(kernels.__path__[0])
MODULES = [
    import_module(".".join((kernels.__name__, *file.relative_to(SOURCES).with_suffix("").parts)))
    for file in sorted(SOURCES.rglob("*.py"))
]
KERNELS = {name for module in MODULES for name in vars(module) if name.endswith("_kernel")}
# Whose programs always wait for each other. What runs programs one after another leaves them to test_sliced_rows.py and
# tests/ptx.
WAITING = {"_row_norm_forward_sliced_kernel"}
# Of devices whose programs may not wait for each other, and so of no GPU of NVIDIA's.
WITHOUT_BARRIER = {"_row_norm_forward_loop_kernel"}
