"""First and second derivatives, what bare operators refuse, and what PyTorch's operator checks have to say."""

from itertools import product
from math import inf

import pytest
import torch
import torch.distributed as dist
from torch.autograd import forward_ad
from torch.func import grad, jvp
from torch.library import opcheck

import normlib.functional as N
from normlib.kernels.batch_norm.launch import empty_signs

pytestmark = pytest.mark.usefixtures("process_group")
OPS = torch.ops.normlib
SUBSETS = [flags for flags in product((True, False), repeat=3) if any(flags)]


RUNNING = torch.tensor([0.3, -1.0, 0.5]).double(), torch.tensor([0.7, 1.0, 1.4]).double()


def running(x):
    """A mean and a variance that evaluation uses, and training does not keep."""
    return [t.to(x.device, copy=True) for t in RUNNING]


FUNCTIONS = {
    "layer_norm": lambda x, w, b: N.layer_norm(x, (3,), w, b),
    "rms_norm": lambda x, w, b: N.rms_norm(x, (3,), w, 1e-5, b),
    "partial_rms_norm": lambda x, w, b: N.partial_rms_norm(x, (3,), w, 1e-5, b, 0.5),
    "group_norm": lambda x, w, b: N.group_norm(x.view(2, 3, 2), 1, w, b),
    "batch_norm, training": lambda x, w, b: N.batch_norm(x, None, None, w, b, True),
    "batch_norm, training, positions": lambda x, w, b: N.batch_norm(x.view(2, 3, 2), None, None, w, b, True),
    "batch_norm, evaluation": lambda x, w, b: N.batch_norm(x, *running(x), w, b),
    "lp_norm, training, p = 1": lambda x, w, b: N.lp_norm(x, None, None, w, b, True, p=1),
    "weight_norm": lambda x, w, b: N.weight_norm(x.t(), w[:, None]) * b[:, None],
}
RELUS = {"activation": "relu", "pre_activation": "relu"}
# Numerical differences see that beyond their limits batch renorm's r and d are constants.
BEYOND = [torch.full((3,), v, dtype=torch.float64) for v in (1e4, 1e2)]
# Those whose derivatives pass through what the above have; or, with a residual, of x, weight, bias and it.
MORE = {
    "lp_norm, training, p = 2": lambda x, w, b: N.lp_norm(x, None, None, w, b, True, p=2),
    "lp_norm, training, p = inf": lambda x, w, b: N.lp_norm(x, None, None, w, b, True, p=inf),
    "lp_norm, evaluation, p = 1": lambda x, w, b: N.lp_norm(x, *running(x), w, b, p=1),
    "lp_norm, evaluation, p = 2": lambda x, w, b: N.lp_norm(x, *running(x), w, b, p=2),
    "lp_norm, evaluation, p = inf": lambda x, w, b: N.lp_norm(x, *running(x), w, b, p=inf),
    "batch_renorm, training": lambda x, w, b: N.batch_renorm(x, *(t.to(x) for t in BEYOND), w * 1e2, b, True),
    "batch_renorm, evaluation": lambda x, w, b: N.batch_renorm(x, *(t.to(x) for t in BEYOND), w * 1e2, b),
    "noisy_batch_norm": lambda x, w, b: N.noisy_batch_norm(x, None, None, w, b, True, seed=1, per="unit"),
    "instance_norm": lambda x, w, b: N.instance_norm(x.view(2, 3, 2), None, None, w, b),
    "sequence_batch_norm": lambda x, w, b: N.sequence_batch_norm(
        x.view(2, 2, 3), None, None, w, b, True, lengths=(2, 1)
    ),
    "batch_norm, training, ReLUs": lambda x, w, b: N.batch_norm(x, None, None, w, b, True, **RELUS),
    "batch_norm, evaluation, ReLUs": lambda x, w, b: N.batch_norm(x, *running(x), w, b, **RELUS),
    "batch_norm, training, residual": lambda x, w, b, r: N.batch_norm(x, None, None, w, b, True, **RELUS, residual=r),
    "batch_norm, evaluation, residual": lambda x, w, b, r: N.batch_norm(x, *running(x), w, b, **RELUS, residual=r),
    "layer_norm, residual": lambda x, w, b, r: N.layer_norm(x, (3,), w, b, residual=r),
    "rms_norm, residual": lambda x, w, b, r: N.rms_norm(x, (3,), w, 1e-5, b, residual=r),
    "rms_norm, residual, around zero": lambda x, w, b, r: N.rms_norm(
        x, (3,), w, 1e-5, b, residual=r, zero_centred=True
    ),
}


@pytest.mark.parametrize(
    ("name", "needs"), [*product(FUNCTIONS, SUBSETS), *((name, (True,) * (3 + ("residual" in name))) for name in MORE)]
)
def test_derivatives_are_right_to_second_order(name, needs, device):
    inputs = [
        torch.randn(s, dtype=torch.float64, device=device, requires_grad=r)
        for s, r in zip(((4, 3), 3, 3, (4, 3)), needs, strict=False)
    ]
    function = (FUNCTIONS | MORE)[name]
    # Every entry of the Jacobians where all inputs want gradients; of the others a random combination of the entries.
    fast = name in MORE or not all(needs)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=fast)


def samples(device):
    """Arguments for every registered operator."""
    x, residual, dz = (torch.randn(4, 6, device=device, requires_grad=True) for _ in range(3))
    dy = torch.randn(4, 6, device=device)
    w, b = (torch.randn(6, device=device, requires_grad=True) for _ in range(2))
    mean, var = torch.zeros(6, device=device), torch.ones(6, device=device)
    pair, rows = torch.zeros(2, 4, device=device), torch.ones(4, device=device)
    signs = torch.zeros_like(empty_signs(x))
    ranges = [0.5, 1.25, 0.1, 0.1]
    peaks = torch.zeros(2, 6, device=device), var, torch.ones(2, 6, device=device)
    group = dist.group.WORLD.group_name if dist.is_initialized() else ""
    return {
        "layer_norm": [(x, [6], w, b, 1e-5), (x, [6], None, None, 1e-5)],
        "layer_norm_add": [(x, residual, [6], w, b, 1e-5), (x, residual, [6], None, None, 1e-5)],
        "layer_norm_backward": [
            (dy, x, pair, rows, [6], w, b, 1e-5, [True, True, True]),
            (dy, x, pair, rows, [6], w, b, 1e-5, [True, True, True], dz),
        ],
        "rms_norm": [(x, [6], w, None, 1e-5), (x, [6], w, None, 1e-5, True, 0.5)],
        "rms_norm_add": [(x, residual, [6], w, None, 1e-5, True)],
        "rms_norm_backward": [
            (dy, x, pair[0, :0], rows, [6], w, None, 1e-5, [True, True, False]),
            (dy, x, pair[0, :0], rows, [6], w, None, 1e-5, [True, True, False], dz, True, 0.5),
        ],
        "group_norm": [(x, 2, w, b, 1e-5), (x.detach().view(2, 6, 2), 6, None, None, 1e-5)],
        "group_norm_backward": [
            (dy, x, 3, torch.zeros(2, 12, device=device), torch.ones(12, device=device), w, b, 1e-5, [True] * 3)
        ],
        "instance_norm": [(x.detach().view(2, 6, 2), w, b, mean.clone(), var.clone(), 0.1, 1e-5)],
        "batch_norm_train": [
            (x, w, b, mean.clone(), var.clone(), 0.1, 1e-5),
            (x, None, None, None, None, 0.1, 1e-5, True, True),
        ],
        "batch_norm_eval": [(x, w, b, mean, var, 1e-5, True, False)],
        "batch_norm_backward": [
            (dy, x, torch.zeros(2, 6, device=device), var, w, b, 1e-5, False, [True, True, True], True, True),
            (dy, x, mean, var, w, None, 1e-5, True, [True, False, False]),
        ],
        "batch_norm_add_relu_train": [(x, residual, w, b, mean.clone(), var.clone(), 0.1, 1e-5, True, False)],
        "batch_norm_add_relu_eval": [(x, residual, w, b, mean, var, 1e-5, True, True)],
        "batch_norm_add_relu_backward": [
            (dy, x, signs, mean, var, w, b, 1e-5, True, mask, pre_relu)
            for mask, pre_relu in (([True, True, True, False], False), ([True] * 4, True))
        ],
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


@pytest.mark.parametrize("name", list(samples("cpu")))
def test_a_bare_operator_refuses_transforms_and_tangents(name):
    first, *rest = samples("cpu")[name][0]
    operator, first = getattr(OPS, name), first.detach()
    for transform in (lambda f: jvp(f, (first,), (first,)), lambda f: grad(lambda x: f(x).sum())(first)):
        with pytest.raises(NotImplementedError, match=f"normlib::{name} has no rule for torch.func transforms"):
            transform(lambda x: operator(x, *rest)[0])
    refused = pytest.raises(NotImplementedError, match=f"normlib::{name} has no rule for forward-mode AD")
    with forward_ad.dual_level(), refused:
        operator(forward_ad.make_dual(first, first), *rest)


def test_every_operator_is_checked():
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("normlib::")}
    assert registered == set(samples("cpu"))
