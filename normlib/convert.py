"""Swaps the norms of a model that exists already for these, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from normlib.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normlib.group_norm import GroupNorm
from normlib.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normlib.layer_norm import LayerNorm
from normlib.lookalike import ConvertedRMSNorm, Match, examine, why_no_candidate
from normlib.noisy_batch_norm import _NoisyBatchNorm
from normlib.rms_norm import RMSNorm
from normlib.sync_batch_norm import SyncBatchNorm

SWAPS: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    "batch_norm": {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d},
    "layer_norm": {nn.LayerNorm: LayerNorm},
    "rms_norm": {nn.RMSNorm: RMSNorm},
    "group_norm": {nn.GroupNorm: GroupNorm},
    "instance_norm": {
        nn.InstanceNorm1d: InstanceNorm1d,
        nn.InstanceNorm2d: InstanceNorm2d,
        nn.InstanceNorm3d: InstanceNorm3d,
    },
}
# The class that an operator's modules derive from, also those that are not one of the above.
_FAMILIES: dict[str, type[nn.Module]] = {
    "batch_norm": _BatchNorm,
    "layer_norm": nn.LayerNorm,
    "rms_norm": nn.RMSNorm,
    "group_norm": nn.GroupNorm,
    "instance_norm": _InstanceNorm,
}
_ALL = "batch norm, layer norm, RMS norm, group norm and instance norm"
_RECORD = "_normlib_original"  # in a converted module's __dict__, so that copies and pickles of it can be reverted too


@dataclass(frozen=True)
class Converted:
    """A module that was converted, or in a dry run would be: all its names in the model, "" for the model itself."""

    names: tuple[str, ...]
    before: type[nn.Module]
    after: type[nn.Module]


@dataclass(frozen=True)
class LeftAlone:
    """A norm, or what might be one, that was not converted, and why."""

    names: tuple[str, ...]
    kind: type[nn.Module]
    reason: str


@dataclass(frozen=True, repr=False)
class Summary:
    """What `convert` did, or in a dry run would do; print it. `already` names what was normlib's before."""

    converted: tuple[Converted, ...]
    left_alone: tuple[LeftAlone, ...]
    already: tuple[tuple[str, ...], ...]
    dry_run: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """How many modules of each original class were converted."""
        return dict(Counter(c.before.__name__ for c in self.converted))

    def __repr__(self) -> str:
        done = "would convert" if self.dry_run else "converted"
        parts = {
            done: [(f"{c.before.__name__} -> normlib's {c.after.__name__}", c.names) for c in self.converted],
            "left alone": [(f"{s.kind.__name__}: {s.reason}", s.names) for s in self.left_alone],
            "normlib's already": [("", names) for names in self.already],
        }
        lines = []
        for title, entries in parts.items():
            alike: dict[str, list[str]] = {}
            for text, names in entries:
                alike.setdefault(text, []).append(" = ".join(name or "(the model itself)" for name in names))
            lines.append(f"{title}: {len(entries)}")
            for text, places in alike.items():
                more = f" and {len(places) - 3} more" if len(places) > 3 else ""
                lines.append(f"  {len(places)} x {text} ({', '.join(places[:3])}{more})".replace(" x  (", " x ("))
        return "\n".join(lines)


@dataclass(frozen=True)
class _Swap:
    """The class that a module gets, and the attributes that this class reads and the module may not have."""

    to: type[nn.Module]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Original:
    """What undoes a swap."""

    kind: type[nn.Module]
    replaced: dict[str, Any]  # attributes that had another value
    added: tuple[str, ...]
    added_bias: bool  # normlib.RMSNorm has a parameter slot that torch.nn.RMSNorm has not


def convert(model: nn.Module, ops: Iterable[str] = tuple(SWAPS), dry_run: bool = False) -> Summary:
    """Makes a model's norms normlib's, in place, and says which it left alone and why.

    Converted are torch.nn.BatchNorm1d, 2d and 3d, LayerNorm, RMSNorm, GroupNorm, InstanceNorm1d, 2d and 3d, and
    whatever computes exactly RMS norm with one weight (or 1 + weight, as Gemma's), as the classes of Hugging Face
    transformers do: such a class is tried on the CPU, in values, gradients, eps and result dtypes, and converted if all
    of them agree with float64. Subclasses of PyTorch's norms, and modules whose `forward` was replaced, are left alone.

    A module keeps its identity and changes only its class: parameters, buffers, dtype, device, mode, hooks, names,
    ties, optimizers and references from elsewhere stay as they are, and so does the state_dict. The eps of a class that
    is not PyTorch's is read once, here. Everything is examined before anything is changed.

    model: any module, also a norm itself; on any device, "meta" included.
    ops: which of "batch_norm", "layer_norm", "rms_norm", "group_norm" and "instance_norm" to convert; what belongs to
    another is not reported.
    dry_run: report only, and change nothing.

    Returns a `Summary`. Raises TypeError for a model that is no module and for ops that are no collection of names,
    ValueError for an unknown name.

        summary = normlib.convert(model)
        print(summary)
        normlib.revert(model)  # the original modules again
    """
    wanted = _checked(model, ops)
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)

    known: dict[Any, Match | str] = {}
    verdicts = [(module, tuple(names), _verdict(module, wanted, known)) for module, names in places.items()]
    summary = Summary(
        tuple(Converted(names, type(module), v.to) for module, names, v in verdicts if isinstance(v, _Swap)),
        tuple(LeftAlone(names, type(module), v) for module, names, v in verdicts if isinstance(v, str)),
        tuple(names for module, names, _ in verdicts if _is_ours(type(module))),
        dry_run,
    )
    for module, _, verdict in verdicts if not dry_run else ():
        if isinstance(verdict, _Swap):
            _swap(module, verdict)
    return summary


def convert_sync_batchnorm(module: nn.Module, process_group: Any | None = None) -> nn.Module:
    """Makes each batch norm of a model, PyTorch's or normlib's, a `normlib.SyncBatchNorm`, in place; returns the model.

    As `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, but that a module keeps its identity, with its hooks, ties and
    optimizer, and that `revert` makes it what it was. Statistics are shared in `process_group` (default: all
    processes). Raises TypeError for a model that is no module, and ValueError, before anything is changed, for a batch
    norm that is lazy and not initialised, or that computes an activation or noise too.
    """
    _checked(module, ())
    found = [m for m in module.modules() if isinstance(m, _BatchNorm) and not isinstance(m, SyncBatchNorm)]
    for norm in found:
        if isinstance(norm, LazyModuleMixin):
            raise ValueError(f"a {type(norm).__name__} has to see its first batch before it can be converted")
        if isinstance(norm, _NoisyBatchNorm):
            raise ValueError(f"a {type(norm).__name__} has no synchronized form, which would be without its noise")
        if getattr(norm, "activation", None) or getattr(norm, "pre_activation", None):
            raise ValueError(f"a {type(norm).__name__} with an activation has no synchronized form: take them apart")
    for norm in found:
        _swap(norm, _Swap(SyncBatchNorm, {"process_group": process_group}))
    return module


def revert(model: nn.Module) -> tuple[str, ...]:
    """Makes every module that `convert` changed what it was before, and returns their names.

    Parameters and buffers keep their present values. It works on copies, and on loaded pickles, of a converted model
    as well. Raises TypeError for a model that is no module, and RuntimeError, before anything is changed, if a
    converted module has since been given another class (by a parametrization, say) or a bias.
    """
    _checked(model, ())
    converted = {name: module for name, module in model.named_modules() if _RECORD in vars(module)}
    for name, module in converted.items():
        original: _Original = vars(module)[_RECORD]
        if _package(type(module)) != "normlib":
            raise RuntimeError(f"{name!r} became a {type(module).__name__} after its conversion: undo that first")
        if original.added_bias and module._parameters["bias"] is not None:
            raise RuntimeError(f"{name!r} was given a bias after its conversion: {original.kind.__name__} has none")
    for module in converted.values():
        state = vars(module)
        original = state.pop(_RECORD)
        state.update(original.replaced)
        for key in original.added:
            del state[key]
        if original.added_bias:
            del module._parameters["bias"]
        module.__class__ = original.kind
    return tuple(converted)


def _checked(model: nn.Module, ops: Iterable[str]) -> frozenset[str]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {_named(model)}")
    if isinstance(ops, str) or not isinstance(ops, Iterable):
        raise TypeError(f"ops must be a tuple of names out of {tuple(SWAPS)}, not {ops!r}")
    wanted = list(ops)
    unknown = [op for op in wanted if op not in SWAPS]
    if unknown:
        raise ValueError(f"ops may hold {', '.join(map(repr, SWAPS))}, not {unknown[0]!r}")
    return frozenset(wanted)


def _named(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _verdict(module: nn.Module, wanted: frozenset[str], known: dict[Any, Match | str]) -> _Swap | str | None:
    """How to convert a module, or why it stays as it is, or None where nobody would expect a conversion."""
    kind = type(module)
    if _is_ours(kind):
        return None
    called_norm = "norm" in kind.__name__.lower()
    for op, family in _FAMILIES.items():
        if isinstance(module, family):
            return _torch_verdict(module, op) if op in wanted else None
    if all(_package(base) == "torch" for base in kind.__mro__[: kind.__mro__.index(nn.Module)]):
        return f"it is not one of {_ALL}" if called_norm and _holds(module) else None
    if "rms_norm" not in wanted:
        return None
    if called_norm and is_parametrized(module):
        return "it is parametrized, which gave it a class of its own"
    reason = why_no_candidate(module)
    if reason is not None:
        return f"{reason}, so it cannot be tried as RMS norm" if called_norm and _holds(module) else None
    found = examine(module, known)
    if isinstance(found, str):
        return found
    attributes = vars(found) | {"elementwise_affine": True}
    attributes["normalized_shape"] = tuple(module.get_parameter("weight").shape)
    return _Swap(ConvertedRMSNorm, attributes)


def _torch_verdict(module: nn.Module, op: str) -> _Swap | str:
    """The verdict on a module that derives from one of PyTorch's classes for this operator."""
    if isinstance(module, LazyModuleMixin):
        return "it is lazy and not initialised yet"
    if isinstance(module, nn.SyncBatchNorm):
        return "it merges statistics over processes"
    if is_parametrized(module):
        return "it is parametrized, which gave it a class of its own"
    if type(module) not in SWAPS[op]:
        base = next(base for base in type(module).__mro__[1:] if _package(base) == "torch")
        return f"it is a subclass of torch's {base.__name__}, and may compute something else"
    if "forward" in vars(module):
        return "something replaced its forward"
    if op == "rms_norm" and getattr(module, "bias", None) is not None:
        return "it has an attribute bias, which is normlib.RMSNorm's bias"
    return _Swap(SWAPS[op][type(module)])


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _is_ours(kind: type) -> bool:
    """Whether a class is normlib's or derives from one that is."""
    return any(_package(base) == "normlib" for base in kind.__mro__)


def _holds(module: nn.Module) -> bool:
    """Whether a module does something itself, rather than only hold modules that are judged by themselves."""
    return not any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))


def _swap(module: nn.Module, swap: _Swap) -> None:
    state = vars(module)
    replaced = {k: state[k] for k in swap.attributes if k in state}
    added = tuple(k for k in swap.attributes if k not in state)
    bias = issubclass(swap.to, RMSNorm) and not any("bias" in d for d in (state, module._parameters, module._buffers))
    if bias:
        module._parameters["bias"] = None
    state.update(swap.attributes)
    state[_RECORD] = _Original(type(module), replaced, added, bias)
    module.__class__ = swap.to
