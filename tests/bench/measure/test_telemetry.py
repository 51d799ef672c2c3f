"""NVML's figures come by name and in the units of the record; a figure that it does not report is None."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from fake_nvml import UUID, nvml, refuses

from bench.measure import telemetry
from bench.measure.telemetry import PASSING, REASONS, Reading

CUDA = torch.device("cuda")


@pytest.fixture
def install(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=UUID))
    return lambda **changes: monkeypatch.setitem(sys.modules, "pynvml", nvml(**changes))


def test_a_reading_has_the_units_of_the_record(install):
    install()
    assert telemetry.monitor(CUDA).read() == Reading(1980, 2619, 345.6, 41)


def test_energy_is_in_millijoules_and_none_where_it_is_not_counted(install):
    install(nvmlDeviceGetTotalEnergyConsumption=lambda gpu: 123_456_789)
    assert telemetry.monitor(CUDA).energy_mj() == 123_456_789
    install()
    assert telemetry.monitor(CUDA).energy_mj() is None


def test_what_the_gpu_does_not_tell_is_none_and_the_rest_is_there(install):
    install(nvmlDeviceGetPowerUsage=refuses, nvmlDeviceGetCurrentClocksEventReasons=refuses)
    assert telemetry.monitor(CUDA).read() == Reading(1980, 2619, None, 41)


def test_an_older_binding_is_asked_by_the_older_names(install):
    install(
        nvmlDeviceGetTemperatureV=None,
        nvmlDeviceGetTemperature=lambda gpu, sensor: 42,
        nvmlDeviceGetCurrentClocksEventReasons=None,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: 0x40,
    )
    reading = telemetry.monitor(CUDA).read()
    assert (reading.temperature_c, reading.reasons) == (42, {"hw_thermal_slowdown"})


def test_an_older_driver_without_the_newer_function_is_asked_by_the_older_name(install):
    install(nvmlDeviceGetCurrentClocksEventReasons=refuses, nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: 0x4)
    assert telemetry.monitor(CUDA).read().reasons == {"sw_power_cap"}


@pytest.mark.parametrize("bits", [0x0, 0x1, 0x2, 0x3])
def test_an_idle_gpu_and_clocks_set_on_purpose_are_no_reason(install, bits):
    install(nvmlDeviceGetCurrentClocksEventReasons=lambda gpu: bits)
    assert telemetry.monitor(CUDA).read().reasons == set()


@pytest.mark.parametrize("bit, name", REASONS.items())
def test_heat_and_power_throttle_and_settings_do_not(install, bit, name):
    install(nvmlDeviceGetCurrentClocksEventReasons=lambda gpu: bit | 0x1)
    reading = telemetry.monitor(CUDA).read()
    assert reading.reasons == {name}
    assert reading.throttled == ("thermal" in name or "power" in name or name == "hw_slowdown")
    assert set(REASONS.values()) >= PASSING


def test_several_reasons_are_all_told(install):
    install(nvmlDeviceGetCurrentClocksEventReasons=lambda gpu: 0x4 | 0x20)
    assert telemetry.clocks(CUDA)["throttle"] == "sw_power_cap, sw_thermal_slowdown"


def test_the_gpu_is_found_by_its_uuid(install, monkeypatch):
    install()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="another"))
    assert telemetry.monitor(CUDA) is None


def test_without_nvml_or_its_binding_nothing_is_known(install, monkeypatch):
    install(nvmlInit=refuses)
    assert telemetry.monitor(CUDA) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # its import fails
    assert telemetry.monitor(CUDA) is None
    assert telemetry.clocks(CUDA) == {}


def test_a_cpu_is_not_asked_about():
    assert telemetry.monitor(torch.device("cpu")) is None
    assert telemetry.clocks(torch.device("cpu")) == {}


def test_the_clocks_of_the_environment_have_limits_and_driver(install):
    install()
    assert telemetry.clocks(CUDA) == {
        "sm_clock_mhz": 1980,
        "mem_clock_mhz": 2619,
        "power_w": 345.6,
        "temperature_c": 41,
        "throttle": "",
        "max_sm_clock_mhz": 1985,
        "max_mem_clock_mhz": 2620,
        "power_limit_w": 700.0,
        "driver": "580.65.06",
    }


def test_the_binding_that_is_pinned_has_every_name_that_is_asked_for():
    pynvml = pytest.importorskip("pynvml")
    fake = nvml()
    assert [name for name in vars(fake) if name.startswith(("nvml", "NVML")) and not hasattr(pynvml, name)] == []
    for bit, name in REASONS.items():
        constants = [getattr(pynvml, kind + "".join(word.capitalize() for word in name.split("_")), None) for kind in
                     ("nvmlClocksEventReason", "nvmlClocksThrottleReason")]  # fmt: skip
        assert bit in constants


@pytest.mark.parametrize(
    "told, hip, size",
    [
        (50 << 20, None, 50 << 20),
        (0, None, telemetry.UNKNOWN_CACHE),
        (4 << 20, "7.0", telemetry.INFINITY_CACHE),
    ],
)
def test_the_cache_is_what_the_device_tells_except_where_it_tells_too_little(monkeypatch, told, hip, size):
    properties = type("Properties", (), {"L2_cache_size": told})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert telemetry.cache_bytes(torch.device("cuda")) == size


def test_a_program_that_is_missing_or_fails_answers_nothing():
    assert telemetry.output_of(["no-such-program-at-all"]) is None
    assert telemetry.output_of(["false"]) is None
    assert telemetry.output_of(["echo", "yes"]) == "yes"


def test_figures_of_nvidia_smi_are_named(monkeypatch):
    monkeypatch.setattr(telemetry, "output_of", lambda arguments: "570.1, 1980, 2619, 1980, 2619, 700.00")
    assert telemetry._nvidia_smi("GPU-0") == {
        "driver_version": "570.1",
        "clocks.sm": "1980",
        "clocks.mem": "2619",
        "clocks.max.sm": "1980",
        "clocks.max.mem": "2619",
        "power.limit": "700.00",
    }


@pytest.mark.parametrize("answer", [None, "", "No devices were found"])
def test_without_an_answer_of_nvidia_smi_there_are_no_figures(monkeypatch, answer):
    monkeypatch.setattr(telemetry, "output_of", lambda arguments: answer)
    assert telemetry._nvidia_smi("GPU-0") == {}


@pytest.mark.gpu
def test_a_real_gpu_tells_its_clocks_below_their_limits():
    pytest.importorskip("pynvml")
    found = telemetry.clocks(CUDA)
    assert 0 < found["sm_clock_mhz"] <= found["max_sm_clock_mhz"]
    assert 0 < found["mem_clock_mhz"] <= found["max_mem_clock_mhz"]
    assert 0 < found["power_w"] < 2 * found["power_limit_w"]
    assert 10 < found["temperature_c"] < 110
    assert found["driver"]
