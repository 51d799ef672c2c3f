"""What state the GPU is in: clocks, power, temperature, and why its clocks are held down; asked of NVIDIA's NVML.

NVML's Python binding (`nvidia-ml-py`, imported as pynvml) is optional: without it, and on any other GPU, nothing is
known and every figure is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

# The bits of nvmlDeviceGetCurrentClocksEventReasons by the names that nvidia-smi prints; they are part of NVML's ABI,
# and the binding has renamed its constants for them once already. Two are no complaint and left out: 0x1, an idle GPU,
# and 0x2, clocks that somebody has set on purpose.
REASONS = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
# Those that stand for heat or power, and pass when the GPU has rested; hw_slowdown is either. The others are settings
# or properties of the machine, which a second try will not change.
PASSING = {
    "sw_power_cap",
    "hw_slowdown",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
}


@dataclass(frozen=True)
class Reading:
    """One look at the GPU. `reasons` are those for which its clocks are held down, by nvidia-smi's names."""

    sm_clock_mhz: float | None = None
    mem_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    reasons: frozenset[str] = frozenset()

    @property
    def throttled(self) -> bool:
        """Whether heat or power holds the clocks down at this moment."""
        return not self.reasons.isdisjoint(PASSING)


class Monitor:
    """One GPU, as NVML knows it. What this GPU or its driver does not tell is None."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def read(self) -> Reading:
        """The GPU's present state."""
        power_mw = self._ask("nvmlDeviceGetPowerUsage")
        return Reading(
            sm_clock_mhz=self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            mem_clock_mhz=self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_MEM),
            power_w=None if power_mw is None else power_mw / 1e3,
            temperature_c=self._first(_TEMPERATURE, self._nvml.NVML_TEMPERATURE_GPU),
            reasons=frozenset(_named(self._first(_EVENT_REASONS) or 0)),
        )

    def limits(self) -> dict[str, Any]:
        """The highest clocks in MHz, the power limit in W and the driver's version."""
        limit_mw = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        driver = None
        with suppress(self._nvml.NVMLError):
            driver = self._nvml.nvmlSystemGetDriverVersion()
        return {
            "max_sm_clock_mhz": self._ask("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_SM),
            "max_mem_clock_mhz": self._ask("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_MEM),
            "power_limit_w": None if limit_mw is None else limit_mw / 1e3,
            "driver": driver,
        }

    def _first(self, names: Sequence[str], *arguments: Any) -> Any:
        answers = (self._ask(name, *arguments) for name in names)
        return next((answer for answer in answers if answer is not None), None)

    def _ask(self, name: str, *arguments: Any) -> Any:
        function = getattr(self._nvml, name, None)
        if function is not None:
            with suppress(self._nvml.NVMLError):
                return function(self._handle, *arguments)
        return None


# What the binding calls today, then what drivers and bindings from before the renaming have.
_EVENT_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
_TEMPERATURE = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")


def monitor(device: torch.device) -> Monitor | None:
    """The device as NVML knows it; None where there is no NVML, no binding for it, or no NVIDIA GPU.

    It is found by its UUID: CUDA_VISIBLE_DEVICES renumbers torch's devices and not NVML's.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    try:
        pynvml.nvmlInit()
        return Monitor(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError:
        return None


def clocks(device: torch.device) -> dict[str, Any]:
    """Present and highest clocks (MHz), power and its limit (W), temperature (C), reasons and driver, for the record.

    Empty where the device cannot be asked; a figure that it does not tell is None.
    """
    found = monitor(device)
    if found is None:
        return {}
    now = found.read()
    return {
        "sm_clock_mhz": now.sm_clock_mhz,
        "mem_clock_mhz": now.mem_clock_mhz,
        "power_w": now.power_w,
        "temperature_c": now.temperature_c,
        "throttle": ", ".join(sorted(now.reasons)),
        **found.limits(),
    }


def _named(bits: int) -> list[str]:
    return [name for bit, name in REASONS.items() if bits & bit]
