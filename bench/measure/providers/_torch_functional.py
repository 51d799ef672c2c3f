"""PyTorch's functional forms, and of the operators that it has none of, compositions of those that it has."""

from __future__ import annotations

from types import SimpleNamespace

import torch.nn.functional

from bench.cases.operators import operators
from normlib import composed

_FOUND = {name: getattr(torch.nn.functional, name, getattr(composed, name, None)) for name in operators()}
FUNCTIONAL = SimpleNamespace(**{name: function for name, function in _FOUND.items() if function is not None})
