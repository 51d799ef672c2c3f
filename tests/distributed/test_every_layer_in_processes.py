"""Every layer with parameters under DistributedDataParallel and FSDP2, in two processes under gloo."""

import every_layer_checks as checks
import pytest
from every_layer import FORMS

pytestmark = pytest.mark.chance
LEARNING = [name for name, form in FORMS.items() if list(form.make().parameters())]


@pytest.mark.parametrize("way", checks.WRAPPERS)
@pytest.mark.parametrize("form", LEARNING)
def test_gradients_are_averaged(form, way, pool):
    pool.run(checks.averages_gradients, form, way, processes=2)


@pytest.mark.parametrize("form", [name for name in LEARNING if name != "weight norm"])
def test_a_layer_sharded_on_the_meta_device_comes_alive(form, pool):
    pool.run(checks.begins_on_meta, form, processes=2)
