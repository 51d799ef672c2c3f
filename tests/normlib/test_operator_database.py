"""Every sample of PyTorch's own operator database, given to normlib's functional forms."""

import inspect
import re
from math import prod

import pytest
import torch
from samples import BUFFERS, DTYPES, LEAVES, Sample, check, complaint, few
from torch.testing._internal.common_methods_invocations import op_db

from normlib import functional as N

# Entry: the form that stands in for it, and how many samples torch 2.13 has.
FORMS = {
    "nn.functional.batch_norm": ("batch_norm", 12),
    "nn.functional.layer_norm": ("layer_norm", 6),
    "native_layer_norm": ("layer_norm", 20),
    "nn.functional.rms_norm": ("rms_norm", 6),
    "nn.functional.group_norm": ("group_norm", 33),
    "nn.functional.instance_norm": ("instance_norm", 9),
}
ENTRIES = {" ".join(filter(None, (op.name, op.variant_test_name))): op for op in op_db if op.name in FORMS}
# Of few images and in one dtype, for the time they take; test_module_database.py has a 16-bit one.
LONG = ("nn.functional.group_norm", "nn.functional.instance_norm")
CASES = [(name, dtype) for name, op in ENTRIES.items() for dtype in (DTYPES[2:3] if op.name in LONG else DTYPES)]
COMPLEX = (torch.complex64, torch.complex128)

# A sample has a negative eps, and the interpreter's numpy complains of rows that are masked, whose variance is 0.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in sqrt:RuntimeWarning")


def theirs_of(op):
    """The entry's own operator, of several outputs the first."""

    def run(**arguments):
        found = op.op(**arguments)
        return found[0] if isinstance(found, tuple) else found

    return run


def prepared_by(function, arguments, **more):
    def prepare(tensors):
        replaced = {n: tensors[n] for n in arguments if n in tensors}
        return lambda: function(**{**arguments, **replaced, **more}), tensors

    return prepare


def as_groups(shape, groups):
    return shape[0], groups, shape[1] // groups, prod(shape[2:])


def samples(op, device, dtype):
    form = FORMS[op.name][0]
    ours = getattr(N, form)
    signature = inspect.signature(ours)
    # What has no reference inputs of its own gives its samples here, and what has them adds its samples to them.
    for i, entry in enumerate(op.reference_inputs(device, dtype)):
        x = few(entry.input) if op.name in LONG else entry.input
        arguments = dict(signature.bind(x, *entry.args, **entry.kwargs).arguments)
        eps = arguments.get("eps", signature.parameters["eps"].default)
        eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps if eps is None else eps
        groups = x.shape[1] if form == "instance_norm" else arguments.get("num_groups")
        yield Sample(
            name=f"{op.name} {i}",
            tensors={n: arguments.get(n) for n in (*LEAVES, *BUFFERS)},
            ours=prepared_by(ours, arguments),
            theirs=prepared_by(theirs_of(op), arguments),
            truth=prepared_by(theirs_of(op), arguments, eps=eps),
            norm=form,
            eps=eps,
            normalized=len(arguments.get("normalized_shape", ())),
            given=form == "batch_norm" and not arguments.get("training", False),
            grouped=as_groups(x.shape, groups) if groups else None,
        )


@pytest.mark.parametrize(("entry", "dtype"), CASES, ids=str)
def test_every_sample_of_the_operator_database_is_right(entry, dtype, device, record_property):
    op = ENTRIES[entry]
    if dtype not in op.supported_dtypes(device.type):
        pytest.skip(f"the database has no {dtype} sample of {entry} on {device}")
    ran = {True: 0, False: 0}
    for sample in samples(op, device, dtype):
        on_kernels = check(sample)
        ran[on_kernels] += 1
        # Two of batch norm's samples are of shape (0,), where not even channels are; PyTorch has those.
        assert on_kernels or sample.tensors["input"].numel() == 0, f"{sample.name} did not reach the kernels"
    record_property("operator database samples, on the kernels", ran[True])
    record_property("operator database samples, left to PyTorch as the batch is empty", ran[False])
    least = FORMS[op.name][1]
    assert sum(ran.values()) >= least and ran[True] >= least - 2


@pytest.mark.parametrize("entry", [name for name, op in ENTRIES.items() if op.error_inputs_func])
def test_the_operator_databases_errors_are_torchs_own(entry, device, record_property):
    op = ENTRIES[entry]
    form = getattr(N, FORMS[op.name][0])
    errors = list(op.error_inputs(device))
    for error in errors:
        sample = error.sample_input
        theirs = complaint(lambda s=sample: op.op(s.input, *s.args, **s.kwargs))
        assert theirs[0] is error.error_type and re.search(error.error_regex, theirs[1])
        assert complaint(lambda s=sample: form(s.input, *s.args, **s.kwargs)) == theirs
    assert errors
    record_property("operator database error samples", len(errors))


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_complex_samples_are_left_to_pytorch(dtype, device, record_property):
    """Complex samples exist only for RMS norm, and the kernels have no complex arithmetic."""
    taking = [op for op in ENTRIES.values() if dtype in op.supported_dtypes(device.type)]
    assert [op.name for op in taking] == ["nn.functional.rms_norm"]
    ran = 0
    for op in taking:
        for sample in op.reference_inputs(device, dtype):
            outputs = []
            for function in (op.op, getattr(N, FORMS[op.name][0])):
                x, *rest = (
                    a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) else a
                    for a in (sample.input, *sample.args)
                )
                y = function(x, *rest, **sample.kwargs)
                y.abs().sum().backward()
                outputs.append((y.detach(), x.grad, *(a.grad for a in rest if isinstance(a, torch.Tensor))))
            torch.testing.assert_close(*outputs, rtol=0, atol=0, equal_nan=True)
            ran += 1
    record_property("operator database samples, left to PyTorch as they are complex", ran)
    assert ran >= FORMS["nn.functional.rms_norm"][1]
