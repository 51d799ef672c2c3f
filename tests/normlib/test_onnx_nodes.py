"""The ONNX package's own node tests of the three operators, run on normlib.

They come in two ways, and neither needs a network: the modules of onnx.backend.test.case.node make model and data when
they are imported, from a fixed seed; the models once converted from PyTorch lie beside them as files. A case counts if
its graph is one node: the "_expanded" models are decompositions, in which the operator no longer is.
"""

from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import Ran
from errors import ROUNDINGS, relative_error

from normlib import functional as N

onnx = pytest.importorskip("onnx")
generated = import_module("onnx.backend.test.case.node")
load_model_tests = import_module("onnx.backend.test.loader").load_model_tests

# Operator: the module that generates its cases, and how many onnx 1.23 has, stored ones included.
OPERATORS = {
    "BatchNormalization": ("batch_normalization", 9),
    "LayerNormalization": ("layernormalization", 19),
    "RMSNormalization": ("rmsnormalization", 19),
}
STORED = ("pytorch-converted", "pytorch-operator", "simple")


def stored(case, name, message):
    """The protobuf messages of a stored case under this name."""
    files = sorted(Path(case.model_dir, "test_data_set_0").glob(f"{name}_*.pb"))
    return [onnx.numpy_helper.to_array(message.FromString(file.read_bytes())) for file in files]


def read(case):
    """(model, inputs, outputs) of a case, generated or stored."""
    if case.model is not None:
        return case.model, *case.data_sets[0]
    model = onnx.load(Path(case.model_dir, "model.onnx"))
    inputs, outputs = (stored(case, name, onnx.TensorProto) for name in ("input", "output"))
    return model, inputs, outputs


def operator_of(case):
    """The name of the only node's operator, or None."""
    if case.model is None and case.model_dir is None:  # a model that would have to be downloaded
        return None
    nodes = (case.model or onnx.load(Path(case.model_dir, "model.onnx"))).graph.node
    return nodes[0].op_type if len(nodes) == 1 and nodes[0].op_type in OPERATORS else None


def collect():
    # The loader would run the generators of all operators for this, which takes seconds.
    for module, _ in OPERATORS.values():
        import_module(f"{generated.__name__}.{module}")
    cases = [*generated._NodeTestCases, *(case for kind in STORED for case in load_model_tests(kind=kind))]
    return {case.name: case for case in cases if operator_of(case)}


CASES = collect()


def batch_normalization(x, scale, bias, mean, var, *, epsilon=1e-5, momentum=0.9, training_mode=0, is_test=1):
    """ONNX's momentum is the share that stays, and its running variance moves towards the biased one.

    The kernel's moves towards n / (n - 1) of that: scaled on the way in and out, one is the other.
    """
    if not training_mode:
        assert is_test, "opset 6 and before: training by another attribute"
        return (N.batch_norm(x, mean, var, scale, bias, eps=epsilon),)
    n = x.numel() // x.shape[1]
    mean, var = mean.clone(), var * (n / (n - 1))
    y = N.batch_norm(x, mean, var, scale, bias, training=True, momentum=1 - momentum, eps=epsilon)
    return y, mean, var * ((n - 1) / n)


def layer_normalization(x, scale, bias=None, *, axis=-1, epsilon=1e-5, stash_type=1):
    assert stash_type == onnx.TensorProto.FLOAT, "the statistics are float32"
    shape = x.shape[axis:]
    y = N.layer_norm(x, shape, scale, bias, epsilon)
    _, mean, rstd = torch.ops.normlib.layer_norm(x, shape, scale, bias, epsilon)
    per_row = (*x.shape[:axis], *(1 for _ in shape))
    return y, mean.sum(0).reshape(per_row), rstd.reshape(per_row)


def rms_normalization(x, scale, *, axis=-1, epsilon=1e-5, stash_type=1):
    assert stash_type == onnx.TensorProto.FLOAT, "the statistics are float32"
    return (N.rms_norm(x, x.shape[axis:], scale, epsilon),)


ADAPTERS = {
    "BatchNormalization": batch_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
}
RUNS = {
    "BatchNormalization": ({"batch_norm_train"}, {"batch_norm_eval"}),
    "LayerNormalization": ({"layer_norm"},),
    "RMSNormalization": ({"rms_norm"},),
}


def inputs_of(model, given, device):
    """The node's inputs in order: from the model's initializers, or given with the case."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    free = [i.name for i in model.graph.input if i.name not in values]
    values |= dict(zip(free, given, strict=True))
    return [torch.from_numpy(np.array(values[name])).to(device) for name in model.graph.node[0].input]


@pytest.mark.parametrize("name", CASES)
def test_a_node_of_onnx_gives_onnxs_outputs(name, device, record_property):
    case = CASES[name]
    model, given, expected = read(case)
    node = model.graph.node[0]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    with Ran() as ran:
        outputs = ADAPTERS[node.op_type](*inputs_of(model, given, device), **attributes)
    assert set(ran.ours) in RUNS[node.op_type], "it did not reach the kernels"
    assert len(outputs) == len(node.output) == len(expected) > 0
    for output, out, value in zip(node.output, outputs, expected, strict=True):
        truth = torch.from_numpy(np.array(value)).to(device)
        assert (out.shape, out.dtype) == (truth.shape, truth.dtype), output
        torch.testing.assert_close(out, truth, rtol=case.rtol, atol=case.atol, msg=lambda m, o=output: f"{o}: {m}")
        # ONNX's tolerance of 1e-3 would pass a wrong divisor. Both sides are float32: each may be off by its roundings.
        error = relative_error(out, truth.double())
        assert error <= 2 * ROUNDINGS[out.dtype], f"{output}: {error:.2e} from ONNX's"
    record_property("ONNX node samples", 1)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_package_has_as_many_cases_as_it_had(operator):
    assert Counter(map(operator_of, CASES.values()))[operator] >= OPERATORS[operator][1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the other operators' generators
def test_no_generated_case_is_left_out():
    everything = load_model_tests(kind="node")
    assert len(everything) > 1000  # the generators did run
    assert {case.name for case in everything if operator_of(case)} <= set(CASES)
