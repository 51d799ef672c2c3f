"""`--repeat N`: each test marked `chance` N times, which is what `make flakes` asks for."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--repeat", type=int, default=1, metavar="N", help="run each test marked `chance` N times")


def pytest_configure(config):
    if config.getoption("repeat") < 1:
        raise pytest.UsageError("--repeat: give a whole number above zero")


def pytest_generate_tests(metafunc):
    """Makes each repetition a test of its own, so that all of them run and each failure is told."""
    times = metafunc.config.getoption("repeat")
    if times > 1 and metafunc.definition.get_closest_marker("chance"):
        metafunc.fixturenames.append("_repetition")
        metafunc.parametrize("_repetition", range(1, times + 1), indirect=True, ids=lambda n: f"{n} of {times}")


@pytest.fixture
def _repetition(request):
    return request.param
