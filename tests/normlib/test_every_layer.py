"""Every layer and fused form, in every way that training treats layers: `tests/every_layer.py` has both."""

import pytest
import torch
from every_layer import FORMS, REFUSALS, WAYS


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_every_layer_gives_its_results_in_every_way(form, way):
    treat, wanted = WAYS[way]
    if (form, way) in REFUSALS:
        with pytest.raises(RuntimeError, match=REFUSALS[form, way]):
            treat(FORMS[form])
        return
    found, truth = treat(FORMS[form]), wanted(FORMS[form])
    assert found.keys() <= truth.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, truth[name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("form", [form for form in FORMS if form != "weight norm"])
def test_reset_parameters_resets_all_that_a_layer_has(form):
    make = FORMS[form].make
    fresh, late = make(), make(device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in late.state_dict().values():
            tensor.fill_(9)
    late.reset_parameters()
    torch.testing.assert_close(late.state_dict(), fresh.state_dict())
