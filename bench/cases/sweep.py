"""Arguments -> cases: what was typed is checked against what the operators declare, and crossed into cases."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from reprlib import repr as shortened

from bench.cases.case import DTYPES, INPUTS, OFFSETS, Case
from bench.cases.operators import Operator
from bench.cases.presets import Grid
from bench.cli import BadArgument, one_of, some_of, unique, values

Value = int | str

# 15 digits keep every number far inside 64 bits.
_INTEGER = re.compile(r"[1-9][0-9]{0,14}")
_EXTENT = re.compile(rf"{_INTEGER.pattern}(x{_INTEGER.pattern})*")
# Beyond it, float32 (and the rounded input) has not a digit of the deviations left.
_LARGEST_OFFSET = 1e7
# 2 TB in half precision, which no single device holds.
_MOST_ELEMENTS = 2**40


@dataclass(frozen=True)
class Sweep:
    """The values to be crossed. None stands for the preset's, or, for modes that it does not name, the operator's."""

    operators: tuple[str, ...]
    preset: str
    axes: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    modes: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    layouts: tuple[str, ...] | None = None
    families: tuple[tuple[str, float], ...] = (("normal", 0.0),)  # of inputs, with the offset where there is one


def chosen_operators(argument: str, text: str, operators: Mapping[str, Operator]) -> tuple[str, ...]:
    """Names of operators from a comma list of long or short names, or `all`."""
    short = {operator.short: name for name, operator in operators.items()}
    names = some_of(argument, text, (*short, *operators, "all"))
    if "all" in names:
        return tuple(operators)
    return unique(short.get(name, name) for name in names)


def axis_names(operators: Iterable[Operator]) -> tuple[str, ...]:
    """Every axis of these operators, each once, in their order."""
    return unique(axis for operator in operators for axis in operator.axes)


def axis_values(axis: str, text: str, operators: Iterable[Operator]) -> tuple[Value, ...]:
    """The values typed for an axis: one of a few choices where it is no size, or as the presets have it."""
    argument = f"--{axis}"
    owners = [operator for operator in operators if axis in operator.axes]
    choices = unique(value for operator in owners for value in operator.choices.get(axis, ()))
    if choices:
        by_text = {str(choice): choice for choice in choices}
        return tuple(by_text[value] for value in some_of(argument, text, by_text))
    presets = (value for o in owners for p in o.presets.values() for grid in p.grids for value in grid[axis])
    extent = any(isinstance(value, str) for value in presets)
    pattern, allowed = (_EXTENT, "an extent such as 56x56") if extent else (_INTEGER, "a whole number above zero")
    found = values(argument, text)
    for value in found:
        if not pattern.fullmatch(value):
            raise BadArgument(argument, f"{shortened(value)} is not {allowed}")
    return found if extent else tuple(int(value) for value in found)


def presets_of(operators: Iterable[Operator]) -> tuple[str, ...]:
    """Names of the presets that any of these operators has."""
    return unique(name for operator in operators for name in operator.presets)


def parse(given: Mapping[str, str | None], operators: Mapping[str, Operator], preset: str) -> Sweep:
    """Checks typed values, by option name; `preset` is the one to take where none was typed.

    Raises BadArgument for a value that is unknown, empty or not positive, or an axis that no chosen operator has.
    """
    typed = given.get("op")
    names = tuple(operators) if typed is None else chosen_operators("--op", typed, operators)
    chosen = [operators[name] for name in names]
    axes = {axis: text for axis in axis_names(operators.values()) if (text := given.get(axis)) is not None}
    for axis in axes:
        if axis not in axis_names(chosen):
            have = "; ".join(f"{o.short} has {', '.join(f'--{a}' for a in o.axes)}" for o in chosen)
            raise BadArgument(f"--{axis}", f"no axis of --op {','.join(o.short for o in chosen)}: {have}")

    def listed(option: str, allowed: Collection[str]) -> tuple[str, ...] | None:
        text = given.get(option)
        return None if text is None else some_of(f"--{option}", text, allowed)

    typed_preset = given.get("preset")
    elsewhere = [operator.short for operator in operators.values() if typed_preset in operator.presets]
    if elsewhere and typed_preset not in presets_of(chosen):
        problem = f"{typed_preset!r} is not one of {', '.join(presets_of(chosen))}; it is a preset of --op "
        raise BadArgument("--preset", problem + ", ".join(elsewhere))
    return Sweep(
        operators=names,
        preset=preset if typed_preset is None else one_of("--preset", typed_preset, presets_of(chosen)),
        axes={axis: axis_values(axis, text, chosen) for axis, text in axes.items()},
        modes=listed("mode", unique(mode for operator in chosen for mode in operator.modes)),
        dtypes=listed("dtype", DTYPES),
        layouts=listed("layout", unique(layout for operator in chosen for layout in operator.layouts)),
        families=_families(listed("inputs", INPUTS) or ("normal",), given.get("offset")),
    )


def _families(names: tuple[str, ...], typed: str | None) -> tuple[tuple[str, float], ...]:
    """Each family with its offsets: those typed, or the default ones; 0 where a family has none."""
    if typed is not None and "offset" not in names:
        raise BadArgument("--offset", "only together with --inputs offset, whose mean/std it is")
    offsets = OFFSETS if typed is None else unique(_offset(text) for text in values("--offset", typed))
    return tuple((name, offset) for name in names for offset in (offsets if name == "offset" else (0.0,)))


def _offset(text: str) -> float:
    try:
        offset = float(text)
    except ValueError:
        offset = 0.0
    if not 1.0 <= offset <= _LARGEST_OFFSET:
        raise BadArgument("--offset", f"{shortened(text)} is not a number from 1 to {_LARGEST_OFFSET:.0e}")
    return offset


def cases(sweep: Sweep, operators: Mapping[str, Operator]) -> list[Case]:
    """Every case once: operator by operator, the cases of one problem next to each other.

    Axes, dtypes and layouts that were given replace the preset's, in the operators that have them. An operator
    that lacks the preset, or every mode that was given, has no cases. Raises BadArgument for a shape that the
    operator refuses.
    """
    found = []
    for operator in (operators[name] for name in sweep.operators if sweep.preset in operators[name].presets):
        wanted = sweep.modes or operator.presets[sweep.preset].modes or operator.modes
        modes = [mode for mode in wanted if mode in operator.modes]
        found += [replace(problem, mode=mode) for problem in unique(_problems(operator, sweep)) for mode in modes]
    if not found:
        raise BadArgument("--mode", f"no operator of preset {sweep.preset} has {', '.join(sweep.modes or ())}")
    return found


def _problems(operator: Operator, sweep: Sweep) -> Iterator[Case]:
    given: dict[str, tuple[Value, ...]] = {axis: sweep.axes[axis] for axis in operator.axes if axis in sweep.axes}
    if sweep.dtypes:
        given["dtype"] = sweep.dtypes
    layouts = tuple(layout for layout in sweep.layouts or () if layout in operator.layouts)
    if layouts:
        given["layout"] = layouts
    grids: Sequence[Grid] = operator.presets[sweep.preset].grids
    if set(operator.axes) <= set(given):
        # Nothing of the preset's shapes is left, so what belonged to one of its shapes (eps) goes as well.
        grids = [{key: unique(v for grid in grids for v in grid[key]) for key in ("dtype", "layout")}]
    for grid in ({"eps": (operator.eps,), **grid, **given} for grid in grids):
        for *axes, dtype, layout, eps in product(*(grid[axis] for axis in (*operator.axes, "dtype", "layout", "eps"))):
            values = (v if isinstance(v, str) else int(v) for v in axes)
            named = operator.fitted(dict(zip(operator.axes, values, strict=True)), given)
            shape = _shape(operator, named)
            problem = (operator.name, shape, tuple(named.items()), str(dtype), str(layout), "", float(eps))
            yield from (Case(*problem, *family) for family in sweep.families)


def _shape(operator: Operator, axes: Mapping[str, Value]) -> tuple[int, ...]:
    typed = ", ".join(f"--{axis} {value}" for axis, value in axes.items())
    try:
        shape = operator.shape(axes)
    except ValueError as error:
        raise BadArgument(typed, str(error)) from error
    if prod(shape) > _MOST_ELEMENTS:
        raise BadArgument(typed, f"{prod(shape)} elements are more than a device holds ({_MOST_ELEMENTS} at most)")
    return shape
