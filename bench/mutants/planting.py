"""The edit of a source, and the kernels that an edited copy of kernels/ makes, run in place of the real ones."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

SOURCES = Path(__file__).resolve().parents[2] / "kernels"
# The modules whose name `kernels` the operators call through, and the file behind it.
_CALLERS = {
    "normlib.row_norm": "row_norm.launch",
    "normlib.batch_norm": "batch_norm.launch",
    "normlib.batch_renorm": "batch_norm.renorm",
    "normlib.noisy_batch_norm": "batch_norm.noisy",
    "normlib.sync_batch_norm": "batch_norm.sync",
    "normlib.group_norm": "group_norm.launch",
    "normlib.instance_norm": "group_norm.instance",
    "normlib.lp_norm": "batch_norm.lp",
    "normlib.weight_norm": "weight_norm",
}


def _with_imports(files: Iterable[str]) -> tuple[str, ...]:
    """These files of kernels/ and all that they import there, each after those that it imports."""
    imports: dict[str, list[str]] = {}
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in imports:
            imports[file] = list(_imports(source_of(file)))
            waiting += imports[file]
    return tuple(TopologicalSorter(imports).static_order())


def path_of(file: str) -> Path:
    """Returns where a file of kernels/ is: `row_norm.launch` is kernels/row_norm/launch.py."""
    return SOURCES / f"{file.replace('.', '/')}.py"


def source_of(file: str) -> str:
    return path_of(file).read_text(encoding="utf-8")


def _imports(source: str) -> Iterator[str]:
    """The files of kernels/ that this one imports, or imports from."""
    for line in ast.parse(source).body:
        if isinstance(line, ast.ImportFrom) and f"{line.module}.".startswith("normlib.kernels."):
            module = f"{line.module}.".removeprefix("normlib.kernels.")
            if module and path_of(module[:-1]).exists():
                yield module[:-1]
            else:
                yield from (f"{module}{name.name}" for name in line.names)


_FILES = _with_imports(_CALLERS.values())


@dataclass(frozen=True)
class Mutant:
    """One edit: inside the function `within` of a file, `old`, which occurs there once, becomes `new`.

    `row_norm.launch` is the file kernels/row_norm/launch.py.
    """

    name: str
    file: str
    within: str
    about: str
    old: str
    new: str
    # Groups of cells (gate.py) that run the code, in order; empty: those of the file.
    cells: tuple[str, ...] = ()


# The interpreter takes 2 ms a program, so the gate's shapes are small. With these plans they still go everywhere: a
# wide row loops from 2049 columns on, 1024 at a time; four partial results take two steps to merge, as do five of a
# group, and 70 channels two programs; and a GPU counts as one multiprocessor, as the interpreter does, so that every
# machine runs the same tiles and splits.
SMALL_PLANS = (
    Mutant("loop", "row_norm.plan", "", "", "{2: 16384, 4: 16384, 8: 8192}", "{2: 2048, 4: 2048, 8: 2048}"),
    Mutant(
        "loop back", "row_norm.plan", "", "", "BACKWARD_REGISTER_COLUMNS = 8192", "BACKWARD_REGISTER_COLUMNS = 2048"
    ),
    Mutant("step", "row_norm.plan", "_forward_loop", "", 'LOOP_ELEMENTS[itemsize] * chosen["threads"]', "1024"),
    Mutant("step back", "row_norm.plan", "row_backward", "", "block_n=2048", "block_n=1024"),
    Mutant("merge", "plan", "merge", "", "16 if programs <= 16 else 64", "2"),
    Mutant("merge columns", "plan", "merge", "", "next_power_of_2(columns), 128)", "next_power_of_2(columns), 64)"),
    Mutant(
        "merge groups",
        "group_norm.plan",
        "",
        "",
        "MERGED_GROUPS, MERGED_PARTS = 4, 32",
        "MERGED_GROUPS, MERGED_PARTS = 4, 4",
    ),
    Mutant("device", "host", "_properties", "", "properties.multi_processor_count, ", "1, "),
    Mutant("cache", "host", "_properties", "", "l2 = properties.L2_cache_size", "l2 = 0"),
    Mutant("tuning", "host", "_properties", "", "plan.tuning_of(properties.name)", "plan.UNTUNED"),
)


def edited(source: str, mutant: Mutant) -> str:
    """The source with the mutant's edit; ValueError unless `old` is there exactly once."""
    start, end = 0, len(source)
    place = f"{path_of(mutant.file).relative_to(SOURCES.parent)} {mutant.within}".rstrip()
    if mutant.within:
        found = re.search(rf"^def {mutant.within}\(.*?(?=\n\n\n|\Z)", source, re.MULTILINE | re.DOTALL)
        if found is None:
            raise ValueError(f"{mutant.name}: there is no {place}")
        start, end = found.span()
    count = source.count(mutant.old, start, end)
    if count != 1:
        raise ValueError(f"{mutant.name}: {place} has {count} times, not once: {mutant.old!r}")
    return source[:start] + source[start:end].replace(mutant.old, mutant.new) + source[end:]


@contextmanager
def planted(*mutants: Mutant) -> Iterator[None]:
    """Within, normlib's operators run the kernels with these edits; without any, as they are but for SMALL_PLANS."""
    sources = {file: source_of(file) for file in _FILES}
    for mutant in (*SMALL_PLANS, *mutants):
        sources[mutant.file] = edited(sources[mutant.file], mutant)
    callers = {importlib.import_module(name): file for name, file in _CALLERS.items()}
    before = {file: importlib.import_module(f"normlib.kernels.{file}") for file in _FILES}
    kernels = {caller: caller.kernels for caller in callers}
    # Triton reads the source of a jitted function from its file, and not before its first launch.
    with tempfile.TemporaryDirectory() as folder:
        try:
            loaded = {file: _load(file, sources[file], Path(folder)) for file in _FILES}
            for caller, file in callers.items():
                setattr(caller, "kernels", loaded[file])  # noqa: B010 - mypy knows of no such attribute to assign
            yield
        finally:
            for file, module in before.items():
                _put(file, module)
            for caller, module in kernels.items():
                setattr(caller, "kernels", module)  # noqa: B010


def _load(file: str, source: str, folder: Path) -> ModuleType:
    """The module of this source under the real one's name, for those loaded after it to import."""
    path = folder / f"{file}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"normlib.kernels.{file}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _put(file, module)
    spec.loader.exec_module(module)
    return module


def _put(file: str, module: ModuleType) -> None:
    """`from package.file import x` looks in sys.modules, `from package import file` at the attribute first."""
    package, _, name = f"normlib.kernels.{file}".rpartition(".")
    sys.modules[f"{package}.{name}"] = module
    setattr(importlib.import_module(package), name, module)
