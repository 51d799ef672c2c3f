"""The names of all kernels, found by themselves, so that a new one cannot be left out of what must reach it."""

from importlib import import_module
from pkgutil import iter_modules

from normlib import kernels

MODULES = [import_module(f"{kernels.__name__}.{module.name}") for module in iter_modules(kernels.__path__)]
KERNELS = {name for module in MODULES for name in vars(module) if name.endswith("_kernel")}
