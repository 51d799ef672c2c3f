"""The experiments, found by themselves: each module here has the name of its claim and a function `run`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache

from bench.study.setting import Setting
from bench.study.training import Outcome

# (condition, seed, setting) -> what came out; PyTorch's own generator is seeded with the seed by then.
Experiment = Callable[[str, int, Setting], Outcome]


@cache
def experiments() -> dict[str, Experiment]:
    """Every experiment by name."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return {name: importlib.import_module(f"{__name__}.{name}").run for name in names}
