"""Every call of launches.py once, on the GPU: what compute-sanitizer runs. With `load` or `store`: masks dropped."""

import sys

import pytest
import torch
from launches import CALLS, RAGGED
from planting import drop_masks

with pytest.MonkeyPatch.context() as monkeypatch:
    for access in sys.argv[1:]:
        drop_masks(access, monkeypatch)
    calls = RAGGED if sys.argv[1:] else CALLS
    for call in calls:
        call.run(torch.device("cuda"))
    torch.cuda.synchronize()
print(f"{len(calls)} calls")
