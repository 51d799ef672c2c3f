"""Batch norm over all steps of all sequences: padded, packed, in either order, against float64."""

from functools import partial

import calls
import pytest
import torch
from calls import Ran, assert_results, results
from errors import assert_right
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import normlib
from normlib import composed, reference
from normlib import functional as N

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LENGTHS = (7, 2, 0, 5)
draw = partial(calls.draw, offset=2.0, channel=-1)
FUNCTIONS = {"kernels": N.sequence_batch_norm, "composition": composed.sequence_batch_norm}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def results_of(function, x, dy, weight, bias, **options):
    """y and the gradients, in training."""
    return results(lambda x, w, b: function(x, None, None, w, b, True, **options), dy, x, weight, bias)


@every_function
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_both_have_the_results_and_gradients_of_float64(function, lengths, device):
    x, dy, weight, bias = draw((7, 4, 5), torch.float64, device)
    truth = reference.sequence_batch_norm(x, weight, bias, 1e-5, dy, lengths)
    assert_results(results_of(function, x, dy, weight, bias, lengths=lengths), truth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_have_them_in_every_dtype(dtype, device):
    x, dy, weight, bias = draw((9, 4, 70), dtype, device)
    truth = reference.sequence_batch_norm(x, weight, bias, 1e-5, dy, LENGTHS)
    assert_results(results_of(N.sequence_batch_norm, x, dy, weight, bias, lengths=LENGTHS), truth)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_the_statistics_are_those_of_the_valid_steps_alone(lengths, device):
    x, *_ = draw((7, 4, 5), torch.float64, device)
    ends = torch.tensor(lengths or (7,) * 4, device=device)
    steps = x[torch.arange(7, device=device)[:, None] < ends]
    running_mean, running_var = x.new_zeros(5), x.new_ones(5)
    N.sequence_batch_norm(x, running_mean, running_var, training=True, momentum=1.0, lengths=lengths)
    torch.testing.assert_close(running_mean, steps.mean(0))
    torch.testing.assert_close(running_var, steps.var(0))


@every_function
def test_what_padding_holds_is_neither_read_nor_counted(function, device):
    x, dy, weight, bias = draw((7, 4, 5), torch.float32, device)
    expected = results_of(function, x, dy, weight, bias, lengths=LENGTHS)
    padding = torch.arange(7, device=device)[:, None] >= torch.tensor(LENGTHS, device=device)
    x[padding], dy[padding] = torch.nan, torch.inf
    found = results_of(function, x, dy, weight, bias, lengths=LENGTHS)
    for name, out in found.items():
        assert torch.equal(out, expected[name]), name
    assert not found["y"][padding].any() and not found["dx"][padding].any()


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_batch_first_is_another_order_of_the_same(lengths, device):
    x, dy, weight, bias = draw((7, 4, 5), torch.float64, device)
    expected = results_of(N.sequence_batch_norm, x, dy, weight, bias, lengths=lengths)
    swapped = (t.transpose(0, 1).contiguous() for t in (x, dy))
    found = results_of(N.sequence_batch_norm, *swapped, weight, bias, lengths=lengths, batch_first=True)
    for name, out in found.items():
        assert_right(out.transpose(0, 1) if out.dim() == 3 else out, expected[name], name)


def test_neither_order_of_memory_is_copied(device):
    x, *_ = draw((7, 4, 5), torch.float32, device)
    for each in (x, x.transpose(0, 1)):
        assert N.sequence_batch_norm(each, None, None, training=True).stride() == each.stride()


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_a_packed_sequence_comes_back_packed_with_the_same_steps(enforce_sorted, device):
    x, *_ = draw((7, 4, 5), torch.float64, device)
    lengths = (7, 5, 2, 1) if enforce_sorted else (2, 7, 1, 5)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    norm = normlib.SequenceBatchNorm(5, device=device, dtype=torch.float64)
    y, found = pad_packed_sequence(norm(packed))
    assert tuple(found.tolist()) == lengths
    torch.testing.assert_close(y, norm(x, lengths))


def test_lengths_may_be_a_tensor_a_list_or_a_tuple(device):
    x, *_ = draw((7, 4, 5), torch.float32, device)
    given = (LENGTHS, list(LENGTHS), torch.tensor(LENGTHS), torch.tensor(LENGTHS, dtype=torch.int32, device=device))
    found = [N.sequence_batch_norm(x, None, None, training=True, lengths=lengths) for lengths in given]
    assert all(torch.equal(y, found[0]) for y in found)


def test_with_lengths_on_the_host_nobody_waits_for_the_device(device):
    x, *_ = draw((7, 4, 5), torch.float32, device)
    with Ran() as ran:
        N.sequence_batch_norm(x, None, None, training=True, lengths=LENGTHS)
    assert "aten::index_select" in ran.names
    assert not set(ran.names) & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::equal"}


@pytest.mark.parametrize("training", [True, False])
def test_the_layer_is_batchnorm1d_on_the_steps(training, device):
    x, *_ = draw((7, 4, 5), torch.float32, device)
    theirs = nn.BatchNorm1d(5, momentum=None).to(device).train(training)
    ours = normlib.SequenceBatchNorm(5, momentum=None).to(device).train(training)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x.flatten(0, 1)).view(x.shape))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert repr(ours) == repr(theirs).replace("BatchNorm1d", "SequenceBatchNorm")
    assert "batch_first=True" in repr(normlib.SequenceBatchNorm(5, batch_first=True))


@pytest.mark.parametrize("training", [True, False])
def test_lengths_in_a_tensor_compile_whole_and_once(training, device):
    torch._dynamo.reset()
    norm = normlib.SequenceBatchNorm(5).to(device).train(training)
    other = normlib.SequenceBatchNorm(5).to(device).train(training)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x, dy, *_ = draw((7, 4, 5), torch.float32, device)
    for i, lengths in enumerate((LENGTHS, (1, 1, 0, 0), (7, 7, 7, 7))):
        found = []
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            for each in (norm, compiled):
                leaf = x.detach().requires_grad_()
                y = each(leaf, torch.tensor(lengths))
                found.append([y.detach(), *torch.autograd.grad(y, leaf, dy)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), other.buffers(), strict=True))
    for wrong in ((8, 1, 1, 1), (-1, 3, 1, 1), (1, 0, 0, 0)):
        with pytest.raises(RuntimeError):
            compiled(x, torch.tensor(wrong))


def test_a_batch_without_a_step_leaves_the_buffers(device):
    norm = normlib.SequenceBatchNorm(5).to(device)
    y = norm(torch.randn(7, 4, 5, device=device), (0,) * 4)
    assert y.shape == (7, 4, 5) and not y.any()
    assert torch.equal(norm.running_mean, torch.zeros(5, device=device))
