"""One call as a CUDA graph, which is launched by the driver in one piece and leaves the host's work behind."""

from __future__ import annotations

from collections.abc import Callable

import torch

# As many as torch.cuda.make_graphed_callables makes: what happens only once must not be captured.
_WARM_UP = 3


class NotCaptured(Exception):
    """There is no graph of this call, for the reason given.

    `poisoned`: what comes after it in this process may be spoiled. Where the driver refuses to end a capture, PyTorch
    does not get to take its allocator and its random generators out of it.
    """

    def __init__(self, reason: str, poisoned: bool) -> None:
        super().__init__(reason)
        self.poisoned = poisoned


def capture(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of one call; raises NotCaptured.

    It is captured on the present stream, unless that is the default stream, which cannot be captured: backward runs
    where its forward ran, so that the backward pass of a cell that was built on the default stream is out of reach.
    """
    present = torch.cuda.current_stream()
    side = torch.cuda.Stream() if present == torch.cuda.default_stream() else present
    try:
        side.wait_stream(present)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.synchronize()
    except Exception as error:
        raise NotCaptured(str(error), poisoned=False) from error
    graph = torch.cuda.CUDAGraph()
    # Ending the capture fails as well after an error in it, and says only that it was no good any more.
    first: Exception | None = None
    try:
        # The outer one is for failures, after which torch.cuda.graph leaves its own stream the current one.
        with torch.cuda.stream(present), torch.cuda.graph(graph, stream=side):
            try:
                run()
            except Exception as error:
                first = error
                raise
    except Exception as error:
        raise NotCaptured(str(first or error), poisoned=True) from error
    return graph
