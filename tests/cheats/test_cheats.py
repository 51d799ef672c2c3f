"""The judge refuses every cheat with its status and a reason, and says nothing against the honest.

On a machine without a GPU they run on the fake one of tests/fake_device.py.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from cheats import CHEATS, Cheat
from fake_cuda import installed
from fake_device import FakeDevice, VirtualHost
from honest import HONEST

from bench.cases.operators import operators
from bench.cases.sweep import Sweep, cases
from bench.measure import cell, persisting
from bench.measure.providers import providers
from bench.measure.timing import clock, phases

CUDA = torch.device("cuda")
KINDS = ("timing", "cache", "replay", "drift", "theft", "numerics", "structure", "unfairness")


@pytest.fixture
def gpu(monkeypatch):
    """The GPU, or the fake one, whose host is slow, so that few calls fill the time that a measurement takes."""
    if torch.cuda.is_available():
        yield None
        return
    monkeypatch.setattr("bench.measure.sampling.REST_S", 0.0)
    monkeypatch.setattr(phases, "_DETACH_S", 0.0)
    persisting.driver.cache_clear()
    cell._own_stream.cache_clear()
    with installed(FakeDevice(VirtualHost(queue_s=1e-3))) as device:
        monkeypatch.setattr(clock, "perf_counter", device.host.now)
        monkeypatch.setattr(Cheat, "host", lambda self: device.host.wait_until(device.host.now() + device.host.queue_s))
        yield device
    cell._own_stream.cache_clear()


def measured(provider, mode, tokens=16):
    """Returns the record of a provider's cell of layer norm."""
    axes = {"tokens": (tokens,), "hidden": (256,)}
    case = cases(Sweep(("layer_norm",), "smoke", axes, (mode,), ("fp32",)), operators())[0]
    ended = []
    problem = cell.Problem(case.problem, cell.RunSettings(CUDA, 0, "torch", providers()["torch"], operators()))
    problem.measure(case, [provider], ended.append)
    return ended[0].record


@pytest.mark.parametrize("said", CHEATS, ids=lambda said: f"{said.kind}-{said.spoil.__name__}-{said.mode}")
def test_a_cheat_is_refused(gpu, said, record_property):
    if gpu:
        gpu.host.queue_s = said.host_s
    record = measured(Cheat(said.spoil, backend=said.backend), said.mode, said.tokens)
    assert (record.status, said.reason in record.reason) == (said.status, True), f"{record.status}: {record.reason}"
    record_property("refused", f"{said.kind:11}{said.spoil.__name__:30}{record.status}: {record.reason}")


@pytest.mark.parametrize(("name", "provider", "mode"), HONEST, ids=[name for name, *_ in HONEST])
def test_an_honest_provider_passes_without_a_remark(gpu, name, provider, mode, record_property):
    record = measured(provider, mode)
    assert (record.status, record.reason) == ("ok", ""), record.reason
    assert record.latency_us > 0
    record_property("passed", name)


def test_there_are_cheats_of_every_kind():
    found = Counter(said.kind for said in CHEATS)
    assert set(found) == set(KINDS) and min(found.values()) >= 3
    assert len(CHEATS) >= 40 and len(HONEST) >= 15
