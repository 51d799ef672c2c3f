"""Checks of synchronized batch norm in every process of a group, against float64 over the gathered batch."""

import copy

import torch
import torch.distributed as dist
from errors import assert_right
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import normlib
from normlib import reference

EPS, MOMENTUM = 1e-5, 0.3


def whole_batch(shape, dtype, channels_last, offset):
    x, dy = torch.randn(shape, dtype=torch.float64) * 2 + offset, torch.randn(shape, dtype=torch.float64)
    if channels_last:
        x, dy = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, dy))
    return x.to(dtype), dy.to(dtype)


def share(t, shares, rank):
    """This process's rows, in memory of their own and the whole's layout."""
    first = sum(shares[:rank])
    return t[first : first + shares[rank]].clone(memory_format=torch.preserve_format)


def layer(channels, dtype, group):
    stats = torch.float64 if dtype == torch.float64 else torch.float32
    norm = normlib.SyncBatchNorm(channels, EPS, MOMENTUM, process_group=group, dtype=stats)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def as_the_whole_batch(rank, group, shares, dims, dtype, channels_last, offset):
    """Forward, gradients and buffers of this share; returns the bits that every process must have alike."""
    x, dy = whole_batch((sum(shares), *dims), dtype, channels_last, offset)
    norm = layer(dims[0], dtype, group)
    truth = reference.batch_norm(x, norm.weight.detach(), norm.bias.detach(), EPS, dy)
    mine = share(x, shares, rank).requires_grad_()
    y = norm(mine)
    y.backward(share(dy, shares, rank))
    assert y.dtype == mine.grad.dtype == dtype and y.shape == mine.shape
    sums = torch.stack([norm.weight.grad, norm.bias.grad]).double()
    dist.all_reduce(sums, group=group)
    if shares[rank]:
        assert y.stride() == mine.stride() == mine.grad.stride()
        assert_right(y, share(truth["y"], shares, rank), "y")
        assert_right(mine.grad, share(truth["dx"], shares, rank), "dx")
    else:
        assert not norm.weight.grad.any() and not norm.bias.grad.any()
    assert_right(sums[0].to(norm.weight.dtype), truth["dw"], "dw")
    assert_right(sums[1].to(norm.weight.dtype), truth["db"], "db")
    assert_right(norm.running_mean, MOMENTUM * truth["mean"], "running_mean")
    assert_right(norm.running_var, 1 - MOMENTUM + MOMENTUM * truth["var_unbiased"], "running_var")
    again = torch.ops.normlib.sync_batch_norm_train(mine, None, None, None, None, 0.0, EPS, group.group_name)
    assert again[3].item() == truth["y"].numel() / dims[0]
    return [t.tolist() for t in (*again[1:], norm.running_mean, norm.running_var)]


def all_empty(rank, group):
    norm = layer(3, torch.float32, group)
    x = torch.empty(0, 3, 4, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.shape == x.shape and not norm.weight.grad.any()
    assert torch.equal(norm.running_mean, torch.zeros(3)) and torch.equal(norm.running_var, torch.ones(3))
    assert norm.num_batches_tracked == 1


def in_eval(rank, group):
    """Each process by itself: nothing is gathered, so the others need not even call it."""
    norm = layer(5, torch.float32, group).eval()
    nn.init.normal_(norm.running_mean)
    x = torch.randn(rank + 1, 5, 3)
    truth = reference.batch_norm_eval(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, EPS)
    if rank == 0:
        assert_right(norm(x).detach(), truth["y"].detach(), "y")
    alone = normlib.SyncBatchNorm(5, track_running_stats=False, process_group=group).eval()
    x = torch.randn(rank + 2, 5, 3)
    assert_right(alone(x).detach(), reference.batch_norm(x)["y"], "y without buffers")


def options(rank, group):
    """A cumulative average, no parameters, no buffers, no gradient of x, and one of weight alone."""
    x = torch.randn(8, 4, 3) + 2
    mine = x[:3] if rank == 0 else x[3:]
    norm = normlib.SyncBatchNorm(4, momentum=None, process_group=group)
    for factor in (1.0, 3.0):
        norm(mine * factor)
    truth = reference.batch_norm(x)
    assert_right(norm.running_mean, 2 * truth["mean"], "cumulative mean")
    bare = normlib.SyncBatchNorm(4, affine=False, track_running_stats=False, process_group=group)
    assert_right(bare(mine), truth["y"][:3] if rank == 0 else truth["y"][3:], "y")
    norm.weight.grad = None
    norm.bias.requires_grad_(False)
    norm(mine).sum().backward()
    assert norm.weight.grad is not None and norm.bias.grad is None


def words(error, call):
    try:
        call()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")


def refusals(rank, group):
    norm = layer(5, torch.float32, group)
    before = copy.deepcopy([*norm.buffers()][:2])
    x = torch.randn(4, 5, 3)
    assert words(ValueError, lambda: norm(x[0, 0])) == "expected at least 2D input (got 1D input)"
    assert words(ValueError, lambda: norm(x[:, :0])) == "SyncBatchNorm number of input channels should be non-zero"
    assert words(RuntimeError, lambda: norm(x[:, :4])) == "running_mean should contain 4 elements not 5"
    assert "not implemented for 'Int'" in words(NotImplementedError, lambda: norm(x.int()))
    norm.eps = 0.0
    assert words(ValueError, lambda: norm(x)) == "batch_norm eps must be positive during training, but got 0.0"
    norm.eps = EPS
    assert all(torch.equal(a, b) for a, b in zip(before, [*norm.buffers()][:2], strict=True))
    with torch.autograd.forward_ad.dual_level():
        assert "in this context" in words(NotImplementedError, lambda: norm(x))
    twice = lambda: torch.autograd.grad(
        torch.autograd.grad(norm(x.requires_grad_()).sum(), x, create_graph=True)[0].sum(), x
    )
    assert "no second derivative" in words(NotImplementedError, twice)


def compiled(rank, group):
    """torch.compile takes a layer whole, for shares of any size, and gives the same bits."""
    x = torch.randn(9, 5, 4, 4)
    eager, model = layer(5, torch.float32, group), None
    traced = copy.copy(eager)
    model = torch.compile(traced, fullgraph=True, backend="aot_eager", dynamic=True)
    for shares in ((4, 5), (6, 3)):
        found = []
        for norm in (eager, model):
            mine = share(x, shares, rank).requires_grad_()
            y = norm(mine)
            found.append((y.detach(), *torch.autograd.grad(y.square().sum(), (mine, eager.weight, eager.bias))))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def net():
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(*layers).double()


def losses(model, x, target):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    found = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found, dtype=torch.float64)


def trained(rank, group):
    """Losses of 20 steps: of the processes together under DistributedDataParallel, and of PyTorch's norm alone."""
    x, target = torch.randn(8, 3, 5, 5, dtype=torch.float64), torch.randint(3, (8,))
    alone = losses(net(), x, target)
    model = DistributedDataParallel(normlib.convert_sync_batchnorm(net(), group), process_group=group)
    size = 8 // group.size()
    mine = slice(rank * size, (rank + 1) * size)
    together = losses(model, x[mine], target[mine])
    dist.all_reduce(together, group=group)
    return (together / group.size()).tolist(), alone.tolist()


def as_pytorchs(rank, group):
    """torch.nn.SyncBatchNorm's own results, on a GPU, where it runs."""
    x, dy = (t.cuda() for t in whole_batch((9, 5, 6, 6), torch.float32, False, 3.0))
    shares = (4, 5)
    ours = layer(5, torch.float32, group).cuda()
    theirs = nn.SyncBatchNorm(5, EPS, MOMENTUM, process_group=group).cuda()
    theirs.load_state_dict(ours.state_dict())
    found = []
    for norm in (ours, theirs):
        mine = share(x, shares, rank).requires_grad_()
        y = norm(mine)
        y.backward(share(dy, shares, rank))
        gradients = (mine.grad, norm.weight.grad, norm.bias.grad)
        found.append((y.detach(), *gradients, norm.running_mean, norm.running_var))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
