"""A call that cannot be captured says why, what that leaves behind, and takes nothing else with it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
import torch

from bench.measure.timing.phases import NotCaptured, capture


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda's part in a capture: which stream is the current one, and what ending a bad capture does."""

    class Cuda:
        CUDAGraph = object
        Stream = Stream
        default = Stream()
        captured_on = None

        def __init__(self):
            self.current = self.default
            self.default_stream = lambda: self.default
            self.current_stream = lambda: self.current
            self.synchronize = lambda: None

        @contextmanager
        def stream(self, stream):
            before, self.current = self.current, stream
            try:
                yield
            finally:
                self.current = before

        @contextmanager
        def graph(self, graph, stream):
            self.captured_on = self.current = stream  # and, as torch.cuda.graph does, kept after a failure
            before = self.default
            try:
                yield
            except Exception as error:
                raise RuntimeError("operation failed due to a previous error during capture") from error
            self.current = before

    found = Cuda()
    monkeypatch.setattr(torch, "cuda", found)
    return found


def refusing_capture(cuda, error):
    def run():
        if cuda.captured_on is not None:
            raise error

    return run


def test_what_is_captured_has_run_before_on_the_same_stream(cuda):
    streams = []
    capture(lambda: streams.append(cuda.current))
    assert len(streams) == 4
    assert set(streams) == {cuda.captured_on}


def test_the_default_stream_is_left_for_the_capture_and_no_other_is(cuda):
    capture(lambda: None)
    assert cuda.captured_on is not cuda.default
    cuda.current = mine = Stream()
    capture(lambda: None)
    assert cuda.captured_on is mine


def test_a_refused_capture_tells_the_first_error_and_marks_the_process(cuda):
    with pytest.raises(NotCaptured, match="not permitted when stream is capturing") as refused:
        capture(refusing_capture(cuda, RuntimeError("not permitted when stream is capturing")))
    assert refused.value.poisoned


def test_a_refusal_without_a_text_is_one_too(cuda):
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    for call in (refusing_capture(cuda, Mute()), Mock(side_effect=Mute())):
        with pytest.raises(NotCaptured, match="its text cannot be had: ValueError"):
            capture(call)


def test_after_a_refused_capture_the_stream_is_the_one_from_before(cuda):
    with pytest.raises(NotCaptured):
        capture(refusing_capture(cuda, RuntimeError("no")))
    assert cuda.current is cuda.default


def test_a_call_that_fails_before_its_capture_spoils_nothing(cuda):
    with pytest.raises(NotCaptured, match="division by zero") as refused:
        capture(lambda: 1 / 0)
    assert not refused.value.poisoned
    assert cuda.captured_on is None


CUDA = torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.chance
def test_a_real_graph_computes_again_what_the_call_computed():
    x = torch.randn(1 << 10, device=CUDA)
    y = torch.empty_like(x)
    graph = capture(lambda: torch.mul(x, 2, out=y))
    x.fill_(3)
    graph.replay()
    torch.cuda.synchronize()
    assert y.eq(6).all()


@pytest.mark.gpu
@pytest.mark.chance
def test_a_real_backward_pass_is_captured_where_it_was_built_on_a_side_stream():
    with torch.cuda.stream(torch.cuda.Stream()):
        x = torch.randn(1 << 20, device=CUDA, requires_grad=True)
        y, dy = x.sigmoid(), torch.ones_like(x)
        torch.cuda.synchronize()
        capture(lambda: torch.autograd.grad(y, x, dy, retain_graph=True)).replay()
        torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.chance
def test_a_real_call_that_waits_is_marked_and_leaves_the_stream_as_it_was():
    code = """
import torch; from bench.measure.timing.phases import *
x, before = torch.randn(9, device="cuda"), torch.cuda.current_stream()
try:
    capture(lambda: x.sum().item())
except NotCaptured as refused:
    print(refused.poisoned, torch.cuda.current_stream() == before, "captur" in str(refused), float(x.mul(0).sum()))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["True", "True", "True", "0.0"]
