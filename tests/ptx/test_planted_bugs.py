"""The emulator finds every bug that is planted in a kernel, and none where there is none."""

import pytest

from ptx.planted import PLANTS, planted


@pytest.mark.parametrize("name", PLANTS)
def test_planted_bugs_are_found(name, compiling):
    plant = PLANTS[name]
    changed, found = compiling(planted, name)
    assert changed == (plant.edit is not None), "the compiled kernel has nothing that the edit looks for"
    assert any(plant.found in one for one in found) if plant.found else not found, found
