"""Layer and RMS norm as graphs of cuDNN's front end, the package nvidia-cudnn-frontend.

The front end knows tensors of four dimensions: a row is a sample, the hidden dimension its channels; statistics are
float32. Written after its own test_layernorm.py and test_rmsnorm.py (NVIDIA/cudnn-frontend, test/python).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Inputs, Operator, operators
from bench.measure.providers import Outputs, Runnable, Unsupported

# How the front end says that no engine serves a graph; older versions do so in a plain RuntimeError.
_NO_ENGINE = re.compile(r"not[ _]?supported|unsupported|no (valid|suitable|execution)", re.IGNORECASE)


@dataclass(frozen=True)
class Graph:
    """A graph that is built for one shape, the front end's tensors by name, and its workspace."""

    graph: Any
    handle: Any
    tensors: Mapping[str, Any]
    workspace: Tensor

    def __call__(self, buffers: Mapping[str, Tensor]) -> None:
        """Reads the graph's inputs from, and writes its outputs into, the buffers of that name."""
        self.graph.execute({self.tensors[n]: b for n, b in buffers.items()}, self.workspace, handle=self.handle)


def rows(case: Case, inputs: Inputs) -> Runnable:
    """A cell of layer_norm or rms_norm; Unsupported where the package is missing or has no engine for the case."""
    operator, (tokens, hidden) = operators()[case.op], case.shape
    x, dy = (inputs[name].view(tokens, hidden, 1, 1) for name in ("x", "dy"))
    parameters = {name: inputs[name].view(1, hidden, 1, 1) for name in operator.parameters}
    eps = torch.full((1, 1, 1, 1), case.eps, dtype=torch.float32)
    forward_graph = _forward_graph(operator, tokens, hidden, x.dtype, x.device)
    backward_graph = None if case.mode == "fwd" else _backward_graph(operator, tokens, hidden, x.dtype, x.device)

    def forward() -> Outputs:
        found = {"y": torch.empty_like(x)}
        for name in operator.saved:
            found[name] = torch.empty(tokens, 1, 1, 1, dtype=torch.float32, device=x.device)
        forward_graph({"x": x, **parameters, "eps": eps, **found})
        return found

    def backward(saved: Outputs) -> Outputs:
        assert backward_graph is not None
        found = {n: torch.empty_like(x if n == "dx" else parameters["weight"]) for n in operator.outputs("bwd")}
        statistics = {name: saved[name] for name in operator.saved}
        backward_graph({"x": x, "dy": dy, "weight": parameters["weight"], **statistics, **found})
        return found

    def one_pass() -> Outputs:
        found = forward()
        return found if backward_graph is None else found | backward(found)

    def outputs() -> Outputs:
        shapes = {
            name: inputs[like].shape for name, like in (("y", "x"), ("dx", "x"), ("dw", "weight"), ("db", "weight"))
        }
        if case.mode.startswith("fwd"):
            shapes |= dict.fromkeys(operator.saved, torch.Size((tokens,)))
        return {name: tensor.view(shapes[name]) for name, tensor in one_pass().items() if name in shapes}

    saved = one_pass()
    run: Callable[[], Outputs] = (lambda: backward(saved)) if case.mode == "bwd" else one_pass
    return Runnable(run, outputs)


# A sweep comes back to a shape mode by mode; beyond that a graph would only hold its workspace.
@lru_cache(maxsize=2)
def _forward_graph(norm: Operator, tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Graph:
    cudnn = _front_end()
    pending = _Pending(cudnn, device)
    t = {name: pending.tensor(name, (1, hidden, 1, 1), dtype) for name in norm.parameters}
    t["x"] = pending.tensor("x", (tokens, hidden, 1, 1), dtype)
    t["eps"] = pending.tensor("eps", (1, 1, 1, 1), torch.float32, is_pass_by_value=True)
    node = pending.graph.layernorm if "mean" in norm.saved else pending.graph.rmsnorm
    phase = cudnn.norm_forward_phase.TRAINING
    results = node(
        name=norm.name,
        norm_forward_phase=phase,
        input=t["x"],
        scale=t["weight"],
        bias=t.get("bias"),
        epsilon=t["eps"],
    )
    dtypes = (dtype, *(torch.float32 for _ in norm.saved))
    return pending.build(t, ("y", *norm.saved), results, dtypes)


@lru_cache(maxsize=2)
def _backward_graph(norm: Operator, tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Graph:
    pending = _Pending(_front_end(), device)
    t = {name: pending.tensor(name, (tokens, hidden, 1, 1), dtype) for name in ("x", "dy")}
    t["weight"] = pending.tensor("weight", (1, hidden, 1, 1), dtype)
    t |= {name: pending.tensor(name, (tokens, 1, 1, 1), torch.float32) for name in norm.saved}
    shared = {"grad": t["dy"], "input": t["x"], "scale": t["weight"], "inv_variance": t["rstd"]}
    if "mean" in norm.saved:
        results = pending.graph.layernorm_backward(name=norm.name, mean=t["mean"], **shared)
    else:
        results = pending.graph.rmsnorm_backward(name=norm.name, has_dbias=False, **shared)
    names = norm.outputs("bwd")
    return pending.build(t, names, results[: len(names)], (dtype,) * len(names))


class _Pending:
    """A graph that is being put together."""

    def __init__(self, cudnn: Any, device: torch.device) -> None:
        self.cudnn, self.device = cudnn, device
        self.handle = _handle(device)
        cudnn.set_stream(handle=self.handle, stream=torch.cuda.current_stream(device).cuda_stream)
        single = cudnn.data_type.FLOAT
        self.graph = cudnn.pygraph(handle=self.handle, intermediate_data_type=single, compute_data_type=single)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, **more: Any) -> Any:
        """One of the graph's inputs: contiguous, so channels one apart and samples a row apart."""
        strides = (shape[1], 1, 1, 1)
        return self.graph.tensor(name=name, dim=shape, stride=strides, data_type=self._type(dtype), **more)

    def build(
        self, tensors: dict[str, Any], names: Sequence[str], results: Sequence[Any], dtypes: Sequence[torch.dtype]
    ) -> Graph:
        """Declares the results as outputs and has cuDNN choose an engine; Unsupported where there is none."""
        cudnn, graph = self.cudnn, self.graph
        for name, result, dtype in zip(names, results, dtypes, strict=True):
            result.set_output(True).set_data_type(self._type(dtype))
            tensors[name] = result
        try:
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            graph.check_support()
            graph.build_plans()
        except cudnn.cudnnGraphNotSupportedError as error:
            raise Unsupported(f"no engine: {_first_line(error)}") from error
        except RuntimeError as error:
            if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)) or not _NO_ENGINE.search(str(error)):
                raise
            raise Unsupported(f"no engine: {_first_line(error)}") from error
        workspace = torch.empty(max(graph.get_workspace_size(), 1), dtype=torch.uint8, device=self.device)
        return Graph(graph, self.handle, tensors, workspace)

    def _type(self, dtype: torch.dtype) -> Any:
        types = self.cudnn.data_type
        return {torch.float32: types.FLOAT, torch.float16: types.HALF, torch.bfloat16: types.BFLOAT16}[dtype]


def _front_end() -> Any:
    try:
        import cudnn
    except ImportError as error:
        raise Unsupported(f"the package nvidia-cudnn-frontend cannot be imported: {_first_line(error)}") from error
    return cudnn


@cache
def _handle(device: torch.device) -> Any:
    with torch.cuda.device(device):
        return _front_end().create_handle()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
