"""Converts the norms of an existing model to normlib's, in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from normlib import layer_norm_lookalike
from normlib.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normlib.group_norm import GroupNorm
from normlib.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normlib.layer_norm import LayerNorm
from normlib.lookalike import ConvertedRMSNorm, examine, why_no_candidate
from normlib.rms_norm import RMSNorm
from normlib.statistics_norm import Statistics
from normlib.swap import Swap, check_module, package_of, swap

_CLASSES: dict[str, tuple[type[nn.Module], ...]] = {
    "batch_norm": (BatchNorm1d, BatchNorm2d, BatchNorm3d),
    "layer_norm": (LayerNorm,),
    "rms_norm": (RMSNorm,),
    "group_norm": (GroupNorm,),
    "instance_norm": (InstanceNorm1d, InstanceNorm2d, InstanceNorm3d),
}
SWAPS: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    op: {getattr(nn, kind.__name__): kind for kind in kinds} for op, kinds in _CLASSES.items()
}
# The base class of each operator's modules, including those that are not converted.
_FAMILIES: dict[str, type[nn.Module]] = {
    "batch_norm": _BatchNorm,
    "layer_norm": nn.LayerNorm,
    "rms_norm": nn.RMSNorm,
    "group_norm": nn.GroupNorm,
    "instance_norm": _InstanceNorm,
}
_ALL = "batch norm, layer norm, RMS norm, group norm and instance norm"


@dataclass(frozen=True)
class Converted:
    """A module that was converted (in a dry run: would be); all its names in the model, "" for the model itself."""

    names: tuple[str, ...]
    before: type[nn.Module]
    after: type[nn.Module]


@dataclass(frozen=True)
class LeftAlone:
    """A module that is or might be a norm and was not converted, and the reason."""

    names: tuple[str, ...]
    kind: type[nn.Module]
    reason: str


@dataclass(frozen=True)
class Already:
    """A module that was normlib's before."""

    names: tuple[str, ...]
    kind: type[nn.Module]


@dataclass(frozen=True, repr=False)
class Summary:
    """The report of `convert`, to print: what was converted, what was not, and what was normlib's before."""

    converted: tuple[Converted, ...]
    left_alone: tuple[LeftAlone, ...]
    already: tuple[Already, ...]
    dry_run: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Returns the number of converted modules of each original class."""
        return dict(Counter(c.before.__name__ for c in self.converted))

    def __repr__(self) -> str:
        done = "would convert" if self.dry_run else "converted"
        parts = {
            done: [(f"{c.before.__name__} -> normlib's {c.after.__name__}", c.names) for c in self.converted],
            "left alone": [(f"{s.kind.__name__}: {s.reason}", s.names) for s in self.left_alone],
            "normlib's already": [(a.kind.__name__, a.names) for a in self.already],
        }
        lines = [] if self.converted else ["nothing to convert"]
        for title, entries in parts.items():
            alike: dict[str, list[str]] = {}
            for text, names in entries:
                alike.setdefault(text, []).append(" = ".join(name or "(the model itself)" for name in names))
            lines.append(f"{title}: {len(entries)}")
            for text, places in alike.items():
                more = f" and {len(places) - 3} more" if len(places) > 3 else ""
                lines.append(f"  {len(places)} x {text} ({', '.join(places[:3])}{more})")
        return "\n".join(lines)


def convert(model: nn.Module, ops: Iterable[str] = tuple(SWAPS), dry_run: bool = False) -> Summary:
    """Converts a model's norms to normlib's, in place; returns what was converted, what not, and why.

    It converts torch.nn.BatchNorm1d, 2d and 3d, LayerNorm, RMSNorm, GroupNorm, InstanceNorm1d, 2d and 3d, and modules
    that compute exactly RMS norm with one weight (or 1 + weight, as Gemma's), layer norm, either over the channels of
    images, or group norm with one group, such as those of Hugging Face transformers and timm: their class is tried on
    the CPU, in values, gradients, eps and result dtypes, and converted if all of them agree with float64. Other
    subclasses of PyTorch's norms, and modules whose `forward` was replaced, are not converted.

    Only a module's class changes: identity, parameters, buffers, dtype, device, mode, hooks, names, ties, optimizers,
    references and the state_dict stay as they are. The eps of a class that is not PyTorch's is read once, here.
    Everything is examined before anything is changed.

    model: any module, also a norm itself; on any device, "meta" included.
    ops: those of "batch_norm", "layer_norm", "rms_norm", "group_norm" and "instance_norm" to convert; modules of the
    others are not reported.
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
        if not isinstance(module, Statistics):
            places.setdefault(module, []).append(name)

    known: dict[Any, Any] = {}
    verdicts = [(module, tuple(names), _verdict(module, wanted, known)) for module, names in places.items()]
    summary = Summary(
        tuple(Converted(names, type(module), v.kind) for module, names, v in verdicts if isinstance(v, Swap)),
        tuple(LeftAlone(names, type(module), v) for module, names, v in verdicts if isinstance(v, str)),
        tuple(Already(names, type(module)) for module, names, _ in verdicts if _is_ours(type(module))),
        dry_run,
    )
    for module, _, verdict in verdicts if not dry_run else ():
        if isinstance(verdict, Swap):
            swap(module, verdict)
    return summary


def _checked(model: nn.Module, ops: Iterable[str]) -> frozenset[str]:
    check_module(model)
    if isinstance(ops, str) or not isinstance(ops, Iterable):
        raise TypeError(f"ops must be a tuple of names out of {tuple(SWAPS)}, not {ops!r}")
    wanted = list(ops)
    unknown = [op for op in wanted if op not in SWAPS]
    if unknown:
        raise ValueError(f"ops may hold {', '.join(map(repr, SWAPS))}, not {unknown[0]!r}")
    return frozenset(wanted)


def _verdict(module: nn.Module, wanted: frozenset[str], known: dict[Any, Any]) -> Swap | str | None:
    """Returns the swap that converts a module, the reason why it stays as it is, or None if it is not a norm."""
    kind = type(module)
    if _is_ours(kind):
        return None
    called_norm = "norm" in kind.__name__.lower()
    for op, family in _FAMILIES.items():
        if isinstance(module, family):
            return _torch_verdict(module, op, wanted, known) if op in wanted else None
    if all(package_of(base) == "torch" for base in kind.__mro__[: kind.__mro__.index(nn.Module)]):
        return f"it is not one of {_ALL}" if called_norm and _holds(module) else None
    if not wanted & {"rms_norm", "layer_norm", "group_norm"}:
        return None
    if called_norm and is_parametrized(module):
        return "it is parametrized, which gave it a class of its own"
    other = layer_norm_lookalike.examine(module, wanted, known)
    if isinstance(other, Swap):
        return other
    if "rms_norm" not in wanted:
        return other if called_norm and _holds(module) else None
    reason = why_no_candidate(module)
    if reason is not None:
        return f"{reason}, so it cannot be tried as RMS norm" if called_norm and _holds(module) else None
    found = examine(module, known)
    if isinstance(found, str):
        return found
    attributes = vars(found) | {"elementwise_affine": True}
    attributes["normalized_shape"] = tuple(module.get_parameter("weight").shape)
    return Swap(ConvertedRMSNorm, attributes)


def _torch_verdict(module: nn.Module, op: str, wanted: frozenset[str], known: dict[Any, Any]) -> Swap | str:
    """Returns the verdict on a module that derives from one of PyTorch's classes for this operator."""
    if isinstance(module, LazyModuleMixin):
        return "it is lazy and not initialised yet"
    if isinstance(module, nn.SyncBatchNorm):
        return "it merges statistics over processes"
    if is_parametrized(module):
        return "it is parametrized, which gave it a class of its own"
    if type(module) not in SWAPS[op]:
        found = layer_norm_lookalike.examine(module, wanted, known)
        base = next(base for base in type(module).__mro__[1:] if package_of(base) == "torch")
        return found if isinstance(found, Swap) else f"it is a subclass of torch's {base.__name__}, and {found}"
    if "forward" in vars(module):
        return "something replaced its forward"
    if op == "rms_norm" and getattr(module, "bias", None) is not None:
        return "it has an attribute bias, which is normlib.RMSNorm's bias"
    return Swap(SWAPS[op][type(module)], {"_eps": module.eps} if op == "batch_norm" else {})


def _is_ours(kind: type) -> bool:
    """Returns True for a class of normlib and its subclasses."""
    return any(package_of(base) == "normlib" for base in kind.__mro__)


def _holds(module: nn.Module) -> bool:
    """Returns True for a module that has parameters of its own or no modules inside."""
    return not any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))
