"""Device functions keep to what Triton 3.6 takes too; where a later one runs the tests, nothing else would say so."""

import ast
import inspect

import pytest
from every_kernel import KERNELS, MODULES
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction

FUNCTIONS = {
    name: value.fn
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, JITFunction | InterpretedFunction)
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def test_the_functions_are_found():
    assert set(FUNCTIONS) > KERNELS
    assert {"load", "arrive", "tile_moments"} < set(FUNCTIONS)


@every_function
def test_no_default_of_a_device_function_is_a_plain_string(name):
    # AttributeError: 'str' object has no attribute 'type'. A kernel's own defaults pass through Python.
    defaults = [p.default for p in inspect.signature(FUNCTIONS[name]).parameters.values()]
    assert name in KERNELS or not any(isinstance(default, str) for default in defaults)


@every_function
def test_no_tuple_that_a_device_function_returns_has_none_in_it(name):
    # TypeError: cannot convert None of type <class 'NoneType'> to tensor.
    returned = [
        node.value for node in ast.walk(ast.parse(inspect.getsource(FUNCTIONS[name]))) if isinstance(node, ast.Return)
    ]
    elements = [element for value in returned if isinstance(value, ast.Tuple) for element in value.elts]
    assert not any(isinstance(element, ast.Constant) and element.value is None for element in elements)
