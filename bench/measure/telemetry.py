"""Asks a GPU about itself: its properties by PyTorch, the driver by nvidia-smi, and its state by NVIDIA's NVML.

The state is clocks, power, temperature, and why its clocks are held down. NVML's Python binding (`nvidia-ml-py`,
imported as pynvml) is optional: without it, and on any other GPU, nothing is known and every figure is None.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

# Where the device does not report the size of its cache: half of what do_bench clears, and beyond any L2 so far.
UNKNOWN_CACHE = 128 << 20
# ROCm reports the L2 of one chiplet; behind it lies AMD's Infinity Cache, of up to this size (Instinct MI300).
INFINITY_CACHE = 256 << 20
# What nvidia-smi is asked for, its own names: the driver's version, clocks in MHz and the power limit in W.
_SMI_FIELDS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit")
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
PASSING = {REASONS[bit] for bit in (0x4, 0x8, 0x20, 0x40, 0x80)}
# What the binding calls today, then what drivers and bindings from before the renaming have.
_EVENT_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
_TEMPERATURE = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")


def output_of(command: Sequence[str]) -> str | None:
    """Returns what a program prints, or None where it is not installed, fails or does not come back."""
    try:
        # A hook's GIT_DIR would have git speak of another repository; what it prints need not be UTF-8.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(command, capture_output=True, timeout=20, check=True, env=clean)
        return done.stdout.decode(errors="replace").strip()
    except (OSError, subprocess.SubprocessError):
        return None


def cache_bytes(device: torch.device) -> int:
    """Returns the size of the last cache before the device's memory."""
    reported = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
    return max(reported, INFINITY_CACHE) if torch.version.hip else reported or UNKNOWN_CACHE


def describe(device: torch.device) -> dict[str, Any]:
    """Returns a GPU's name, sizes, driver and clocks, as environment.json has them; None where nvidia-smi is silent."""
    found = torch.cuda.get_device_properties(device)
    smi = _nvidia_smi(f"GPU-{found.uuid}") if hasattr(found, "uuid") else {}
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": cache_bytes(device),
        "driver": smi.pop("driver_version", None),
        "clocks": smi or None,
    }


def _nvidia_smi(uuid: str) -> dict[str, str]:
    """Returns nvidia-smi's figures by its own names; {} where it does not answer."""
    query = ["nvidia-smi", "-i", uuid, f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    figures = [figure.strip() for figure in (output_of(query) or "").split(",")]
    return dict(zip(_SMI_FIELDS, figures, strict=True)) if len(figures) == len(_SMI_FIELDS) else {}


@dataclass(frozen=True)
class Reading:
    """The GPU's state at one moment. `reasons` are those for which its clocks are held down, by nvidia-smi's names."""

    sm_clock_mhz: float | None = None
    mem_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    reasons: frozenset[str] = frozenset()

    @property
    def throttled(self) -> bool:
        """True if heat or power holds the clocks down at this moment."""
        return not self.reasons.isdisjoint(PASSING)


class Monitor:
    """One GPU, as NVML knows it. What this GPU or its driver does not report is None."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def read(self) -> Reading:
        """Returns the GPU's present state."""
        power_mw = self._ask("nvmlDeviceGetPowerUsage")
        reasons = self._first(_EVENT_REASONS) or 0
        return Reading(
            sm_clock_mhz=self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            mem_clock_mhz=self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_MEM),
            power_w=None if power_mw is None else power_mw / 1e3,
            temperature_c=self._first(_TEMPERATURE, self._nvml.NVML_TEMPERATURE_GPU),
            reasons=frozenset(name for bit, name in REASONS.items() if reasons & bit),
        )

    def energy_mj(self) -> int | None:
        """Returns the millijoules that the board has used since its driver was loaded."""
        spent: int | None = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return spent

    def limits(self) -> dict[str, Any]:
        """Returns the highest clocks in MHz, the power limit in W and the driver's version."""
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


def monitor(device: torch.device) -> Monitor | None:
    """Returns the device as NVML knows it; None where there is no NVML, no binding for it, or no NVIDIA GPU.

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
    """Returns present and highest clocks (MHz), power and its limit (W), temperature (C), reasons and driver.

    Empty where the device cannot be asked; a figure that it does not report is None.
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
