"""`python tests/architecture.py`: who imports whom, by rooms; test_architecture.py holds the rules.

A room is a folder of bench/ (or a file that stands alone there), a kernel family, or normlib. An import counts wherever
it stands, inside functions too. `from room import file` counts as an import of the file.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of bench, normlib and kernels, by the name it is imported by."""
    found = {}
    for top in ("bench", "kernels", "normlib"):
        for file in (root / top).rglob("*.py"):
            parts = file.relative_to(root).with_suffix("").parts
            if parts[:2] == ("normlib", "kernels"):
                continue  # the link: the files are in kernels/
            parts = ("normlib", *parts) if top == "kernels" else parts
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imports(root: Path = ROOT) -> dict[str, set[str]]:
    """The modules that each module imports."""
    known = modules(root)
    found: dict[str, set[str]] = {}
    for name, file in known.items():
        targets = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= inside & known.keys()
                if not inside <= known.keys():
                    targets.add(str(node.module))
        found[name] = targets & known.keys() - {name}
    return found


def room(module: str) -> str:
    """`bench.report.figures.maps` is in `bench.report`, `normlib.kernels.plan` in `normlib.kernels`."""
    parts = module.split(".")
    if parts[:2] == ["normlib", "kernels"]:
        return ".".join(parts[:3]) if len(parts) > 3 else "normlib.kernels"
    return ".".join(parts[: 2 if parts[0] == "bench" else 1])


def rooms(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    found: dict[str, set[str]] = {}
    for module, targets in edges.items():
        found.setdefault(room(module), set()).update(room(target) for target in targets)
    return {name: targets - {name} for name, targets in found.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of imports, if there is any."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def floors(edges: dict[str, set[str]]) -> int:
    """Modules in the longest chain of imports; edges without a circle."""
    height: dict[str, int] = {}
    for module in TopologicalSorter(edges).static_order():
        height[module] = 1 + max((height[target] for target in edges[module]), default=0)
    return max(height.values())


if __name__ == "__main__":
    by_module = imports()
    by_room = rooms(by_module)
    for name, targets in sorted(by_room.items()):
        print(name, "->", ", ".join(sorted(targets)) or "nothing")
    circles = [" -> ".join(found) for found in (circle(by_module), circle(by_room)) if found]
    between = sum(room(name) != room(target) for name, targets in by_module.items() for target in targets)
    print(f"{len(by_module)} modules in {len(by_room)} rooms; imports between rooms: {between},", end=" ")
    print(f"pairs of rooms: {sum(map(len, by_room.values()))};", *circles or [f"{floors(by_module)} floors, no circle"])
