"""Reads the signatures of a library's functions from its source, which need not be importable here.

`python record.py FOLDER NAME...` writes the signatures of these providers again; FOLDER is a site-packages or an
unpacked wheel.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def read(name: str) -> dict[str, Any]:
    """A provider's record: package, version, source, and of every entry point its signature and where it is defined."""
    found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return found


def signature(folder: Path, file: str, function: str) -> str:
    """The parameters of a function or method with their defaults, without annotations, `ctx` and `self`."""
    scope: ast.AST = ast.parse((folder / file).read_text(encoding="utf-8"))
    for part in function.split("."):
        scope = next(
            node
            for node in ast.iter_child_nodes(scope)
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part
        )
    assert isinstance(scope, ast.FunctionDef)
    for argument in ast.walk(scope.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if "." in function:
        del scope.args.args[0]
    return ast.unparse(scope.args)


def call(folder: Path, file: str, function: str) -> str:
    """The arguments of the one call of a function in a file: how the library itself calls what is compiled."""
    nodes = ast.walk(ast.parse((folder / file).read_text(encoding="utf-8")))
    (found,) = (n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) == function)
    return ", ".join(map(ast.unparse, [*found.args, *found.keywords]))


def version(folder: Path, package: str) -> str:
    """The version of the package whose metadata lie in the folder."""
    (metadata,) = folder.glob(f"{package.replace('-', '_')}-*.dist-info")
    return metadata.name.removesuffix(".dist-info").rpartition("-")[2]


def again(folder: Path, entry: dict[str, str]) -> dict[str, str]:
    """Returns the part of an entry point's record that the library's Python source has: a signature or a call."""
    reader, key = (call, "call") if "call" in entry else (signature, "signature")
    return {key: reader(folder, entry["file"], entry["function"])}


def main(folder: Path, names: list[str]) -> None:
    for name in names:
        record = read(name)
        record["version"] = version(folder, record["package"])
        for entry in record["entry_points"].values():
            entry.update(again(folder, entry))
        (HERE / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
