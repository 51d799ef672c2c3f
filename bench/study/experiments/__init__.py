"""The experiments of the literature, found by themselves: a module each, with its claim as EXPERIMENT and `run`.

Importing them needs no torch; running them does.
"""

from __future__ import annotations

import importlib
import pkgutil

from bench.study.experiment import Experiment

_found: list[Experiment] = [
    importlib.import_module(f"{__name__}.{module.name}").EXPERIMENT for module in pkgutil.iter_modules(__path__)
]
BY_NAME = {found.name: found for found in sorted(_found, key=lambda found: found.place)}
