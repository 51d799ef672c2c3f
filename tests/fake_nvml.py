"""A stand-in for NVML's binding, `pynvml`, that knows one GPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

UUID = "8b4ff8aa-0000-1111-2222-123456789abc"


class NvmlError(Exception):
    pass


def refuses(*arguments: Any) -> Any:
    raise NvmlError("Not Supported")


def nvml(**changes: Any) -> ModuleType:
    """Returns a pynvml with one GPU in it; a change of None takes a function away, as an older binding lacks it."""
    module: Any = ModuleType("pynvml")
    module.NVMLError = NvmlError
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM, module.NVML_TEMPERATURE_GPU = 1, 2, 0
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid if uuid == f"GPU-{UUID}" else refuses()
    module.nvmlDeviceGetClockInfo = lambda gpu, kind: {1: 1980, 2: 2619}[kind]
    module.nvmlDeviceGetMaxClockInfo = lambda gpu, kind: {1: 1985, 2: 2620}[kind]
    module.nvmlDeviceGetPowerUsage = lambda gpu: 345_600
    module.nvmlDeviceGetTotalEnergyConsumption = refuses
    module.nvmlDeviceGetEnforcedPowerLimit = lambda gpu: 700_000
    module.nvmlDeviceGetTemperatureV = lambda gpu, sensor: 41
    module.nvmlDeviceGetCurrentClocksEventReasons = lambda gpu: 0
    module.nvmlSystemGetDriverVersion = lambda: "580.65.06"
    for name, change in changes.items():
        delattr(module, name) if change is None else setattr(module, name, change)
    return module
