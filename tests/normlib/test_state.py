"""Parameters, buffers, dtypes, devices, incomplete state and hooks of the layers are those of PyTorch's."""

import pytest
import torch
from layers import pair
from torch import nn

import normlib

CLASSES = [("BatchNorm1d", 6), ("BatchNorm2d", 6), ("BatchNorm3d", 6), ("LayerNorm", 6), ("RMSNorm", 6)]


def same_tensors(a, b):
    """Returns True for state dicts with the same names, in order, and the same bits, dtypes and devices."""
    return list(a) == list(b) and all(
        x.dtype == y.dtype and x.device == y.device and torch.equal(x, y)
        for x, y in zip(a.values(), b.values(), strict=True)
    )


@pytest.mark.parametrize("missing", ["weight", "num_batches_tracked", "running_mean"])
def test_what_a_state_dict_lacks_is_reported_as_torch_reports_it(missing):
    reports = []
    for library in (nn, normlib):
        state = library.BatchNorm2d(3).state_dict()
        del state[missing]
        with pytest.raises(RuntimeError) as strict:
            library.BatchNorm2d(3).load_state_dict(state)
        reports.append((str(strict.value), library.BatchNorm2d(3).load_state_dict(state, strict=False)))
    assert reports[0] == reports[1]


def test_a_state_dict_from_before_batches_were_counted_loads():
    state = nn.BatchNorm2d(3).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    layer = normlib.BatchNorm2d(3)
    assert layer.load_state_dict(state, strict=True) and layer.num_batches_tracked == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "size"), CLASSES)
def test_factory_arguments_and_moves_give_torchs_tensors(name, size, dtype, device):
    made = [getattr(library, name)(size, device=device, dtype=dtype) for library in (nn, normlib)]
    moved = [getattr(library, name)(size).to(device).to(dtype) for library in (nn, normlib)]
    for theirs, ours in (made, moved):
        assert same_tensors(theirs.state_dict(), ours.state_dict())
        assert all(p.requires_grad for p in ours.parameters())


def test_statistics_that_are_tracked_no_more_stay_as_they_were(device):
    x = torch.randn(6, 5, device=device)
    theirs, ours = (layer.to(device) for layer in pair("BatchNorm1d", (5,), {}))
    for layer in (theirs, ours):
        layer(x)
        layer.track_running_stats = False
    torch.testing.assert_close(ours(x + 9), theirs(x + 9))
    assert ours.num_batches_tracked == 1 and not (ours.running_mean > 0.5).any()


def test_an_rms_norm_with_a_bias_says_so():
    assert "bias=True" in repr(normlib.RMSNorm(6, bias=True)) and "bias" not in repr(normlib.RMSNorm(6))


def test_hooks_fire_in_torchs_order_with_torchs_values(device):
    seen = []
    for layer in (layer.to(device) for layer in pair("BatchNorm1d", (5,), {})):
        log = []
        layer.register_forward_pre_hook(lambda m, args, log=log: log.append(("before", args[0].sum().item())))
        layer.register_forward_hook(lambda m, args, y, log=log: log.append(("after", y.sum().item())))
        layer.register_full_backward_pre_hook(lambda m, dy, log=log: log.append(("dy", dy[0].sum().item())))
        layer.register_full_backward_hook(lambda m, dx, dy, log=log: log.append(("dx", dx[0].abs().sum().item())))
        layer.weight.register_hook(lambda dw, log=log: log.append(("dw", dw.abs().sum().item())))
        torch.manual_seed(1)
        x = torch.randn(6, 5, device=device, requires_grad=True)
        layer(x).pow(3).sum().backward()
        seen.append(log)
    theirs, ours = (dict(log) for log in seen)
    assert [k for k, _ in seen[0]] == [k for k, _ in seen[1]]
    # Sums of 30 float32 numbers of size 10: some 1e-6 of them.
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
