"""First and second derivatives, and what PyTorch's operator checks have to say."""

from itertools import product
from math import inf

import pytest
import torch
import torch.distributed as dist
from torch.library import opcheck

import normlib.functional as N
from normlib.kernels.batch_norm.launch import empty_signs

pytestmark = pytest.mark.usefixtures("process_group")
OPS = torch.ops.normlib
SUBSETS = [flags for flags in product((True, False), repeat=3) if any(flags)]


def functions(device):
    running = (
        torch.randn(3, dtype=torch.float64, device=device),
        torch.rand(3, dtype=torch.float64, device=device) + 0.5,
    )
    return {
        "layer_norm": lambda x, w, b: N.layer_norm(x, (3,), w, b),
        "rms_norm": lambda x, w, b: N.rms_norm(x, (3,), w, 1e-5, b),
        "partial_rms_norm": lambda x, w, b: N.partial_rms_norm(x, (3,), w, 1e-5, b, 0.5),
        "group_norm": lambda x, w, b: N.group_norm(x.view(2, 3, 2), 1, w, b),
        "batch_norm, training": lambda x, w, b: N.batch_norm(x, None, None, w, b, True),
        "batch_norm, training, positions": lambda x, w, b: N.batch_norm(x.view(2, 3, 2), None, None, w, b, True),
        "batch_norm, evaluation": lambda x, w, b: N.batch_norm(x, *running, w, b),
    }


@pytest.mark.parametrize("needs", SUBSETS)
@pytest.mark.parametrize("name", list(functions("cpu")))
def test_derivatives_are_right_to_second_order(name, needs, device):
    inputs = [
        torch.randn(s, dtype=torch.float64, device=device, requires_grad=r)
        for s, r in zip(((4, 3), 3, 3), needs, strict=True)
    ]
    function = functions(device)[name]
    # Every entry of the Jacobians where all inputs want gradients; of the others a random combination of the entries.
    fast = not all(needs)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=fast)


def samples(device):
    """Arguments for every registered operator."""
    x, dy = torch.randn(4, 6, device=device, requires_grad=True), torch.randn(4, 6, device=device)
    w, b = (torch.randn(6, device=device, requires_grad=True) for _ in range(2))
    mean, var = torch.zeros(6, device=device), torch.ones(6, device=device)
    pair, rows = torch.zeros(2, 4, device=device), torch.ones(4, device=device)
    signs = torch.zeros_like(empty_signs(x))
    ranges = [0.5, 1.25, 0.1, 0.1]
    peaks = torch.zeros(2, 6, device=device), var, torch.ones(2, 6, device=device)
    group = dist.group.WORLD.group_name if dist.is_initialized() else ""
    return {
        "layer_norm": [(x, [6], w, b, 1e-5), (x, [6], None, None, 1e-5)],
        "layer_norm_add": [(x, dy, [6], w, b, 1e-5)],
        "layer_norm_backward": [(dy, x, pair, rows, [6], w, b, 1e-5, [True, True, True])],
        "rms_norm": [(x, [6], w, None, 1e-5), (x, [6], w, None, 1e-5, False, 0.5)],
        "rms_norm_add": [(x, dy, [6], w, None, 1e-5, True)],
        "rms_norm_backward": [
            (dy, x, pair[0, :0], rows, [6], w, None, 1e-5, [True, True, False]),
            (dy, x, pair[0, :0], rows, [6], w, None, 1e-5, [True, True, False], None, False, 0.5),
        ],
        "group_norm": [(x, 2, w, b, 1e-5), (x.detach().view(2, 6, 2), 6, None, None, 1e-5)],
        "group_norm_backward": [
            (dy, x, 3, torch.zeros(2, 12, device=device), torch.ones(12, device=device), w, b, 1e-5, [True] * 3)
        ],
        "instance_norm": [(x.detach().view(2, 6, 2), w, b, mean.clone(), var.clone(), 0.1, 1e-5)],
        "batch_norm_train": [(x, w, b, mean.clone(), var.clone(), 0.1, 1e-5), (x, None, None, None, None, 0.1, 1e-5)],
        "batch_norm_eval": [(x, w, b, mean, var, 1e-5)],
        "batch_norm_backward": [
            (dy, x, torch.zeros(2, 6, device=device), var, w, b, 1e-5, False, [True, True, True]),
            (dy, x, mean, var, w, None, 1e-5, True, [True, False, False]),
        ],
        "batch_norm_add_relu_train": [(x, dy, w, b, mean.clone(), var.clone(), 0.1, 1e-5, True, False)],
        "batch_norm_add_relu_eval": [(x, dy, w, b, mean, var, 1e-5, True, False)],
        "batch_norm_add_relu_backward": [(dy, x, signs, mean, var, w, b, 1e-5, True, [True, True, True, False], False)],
        "batch_renorm_train": [
            (x, w, b, mean.clone(), var.clone(), 0.1, 1e-5, 3.0, 5.0, None),
            (x, None, None, mean.clone(), var.clone(), 0.1, 1e-5, 1.0, 0.0, torch.tensor([2.0, 1.0], device=device)),
        ],
        "batch_renorm_eval": [(x, w, b, mean, var)],
        "batch_renorm_backward": [
            (dy, x, torch.zeros(2, 6, device=device), var, torch.rand(4, 6, device=device), w, b, 1e-5, [True] * 3),
            (dy, x, mean, var, None, w, None, 0.0, [True, True, False]),
        ],
        "noisy_batch_norm_train": [
            (x, w, b, mean.clone(), var.clone(), 0.1, 1e-5, torch.tensor(1, device=device), True, ranges),
            (x, None, None, None, None, 0.1, 1e-5, torch.tensor(1, device=device), False, ranges),
        ],
        "noisy_batch_norm_backward": [
            (
                *(dy, x, torch.zeros(2, 6, device=device), var, torch.rand(4, 6, device=device), w, b, 1e-5),
                *(torch.tensor(1, device=device), True, ranges, [True] * 3),
            )
        ],
        "lp_norm_train": [
            (x, w, b, mean.clone(), var.clone(), 1.0, 0.1, 1e-5),
            (x, None, None, None, None, inf, 0.1, 1e-5),
        ],
        "lp_norm_eval": [(x, w, b, mean, var, 2.0, 1e-5)],
        "lp_norm_backward": [
            (dy, x, *peaks, w, b, inf, 1e-5, False, [True, True, True]),
            (dy, x, mean, var, None, w, None, 1.0, 1e-5, True, [True, False, False]),
        ],
        "weight_norm": [(x, w[:4].view(4, 1))],
        "weight_norm_backward": [(dy, x, torch.ones(2, 4, device=device), w[:4], [True, True])],
        "sync_batch_norm_train": [(x, w, b, mean.clone(), var.clone(), 0.1, 1e-5, group)],
        "sync_batch_norm_backward": [  # which has no derivative
            (
                dy,
                x.detach(),
                torch.zeros(2, 6, device=device),
                var,
                var[:1],
                w.detach(),
                None,
                [True] * 2 + [False],
                group,
            )
        ],
    }


@pytest.mark.parametrize("name", list(samples("cpu")))
def test_opcheck_passes(name, device):
    for arguments in samples(device)[name]:
        opcheck(getattr(OPS, name).default, arguments)


def test_every_operator_is_checked():
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("normlib::")}
    assert registered == set(samples("cpu"))


def test_running_buffers_count_as_written(device):
    running = torch.zeros(3, device=device), torch.ones(3, device=device)
    before = [t._version for t in running]
    N.batch_norm(torch.randn(4, 3, device=device, requires_grad=True), *running, training=True)
    assert [t._version for t in running] == [v + 1 for v in before]
