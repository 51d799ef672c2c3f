"""Rules for imports between the rooms; `python tests/architecture.py` prints who imports whom."""

import ast
from collections import Counter

import pytest
from architecture import circle, imports, modules, rooms


@pytest.fixture(scope="module")
def edges():
    return imports()


def test_no_module_imports_itself_in_a_circle(edges):
    assert circle(edges) == []


def test_no_room_imports_itself_in_a_circle(edges):
    assert circle(rooms(edges)) == []


def test_kernels_import_nothing_of_normlib_outside_kernels(edges):
    outside = {
        (module, target)
        for module, targets in edges.items()
        if module.startswith("normlib.kernels")
        for target in targets
        if not target.startswith("normlib.kernels")
    }
    assert outside == set()


@pytest.mark.parametrize("room", ["bench.cases", "bench.results", "bench.page"])
def test_what_is_measured_and_what_a_run_left_do_not_depend_on_how_it_is_measured(edges, room):
    assert "bench.measure" not in rooms(edges)[room]


@pytest.mark.parametrize("room", ["bench.audit", "bench.compare", "bench.page", "bench.results", "bench.study"])
def test_what_pages_share_is_not_in_the_report(edges, room):
    assert "bench.report" not in rooms(edges)[room]


def test_what_a_run_left_is_read_below_the_pages(edges):
    assert "bench.page" not in rooms(edges)["bench.results"]


def test_no_class_of_the_source_is_defined_twice():
    names = [
        node.name
        for file in modules().values()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name, count in Counter(names).items() if count > 1] == []
