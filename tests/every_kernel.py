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
