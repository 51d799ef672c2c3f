"""`python -m bench.device_constants`: measures what a GPU itself needs for memory, launches and barriers.

The figures go to the device's file (bench/device_constants/device_file.py), each with its time and versions:

- `copy`, `read`: GB/s of device memory by bytes of the tensor. `copy` is PyTorch's, bytes read plus bytes written;
  `read` loads and adds up. Cold calls, as in any cell.
- `l2`: GB/s of a read and of a copy whose tensors stay in the L2, each a third of it.
- `launch`: microseconds from one empty kernel to the next, in a stream and in a CUDA graph, and of the host's work.
- `barrier`: microseconds that a wait of all programs for each other takes, one program a multiprocessor.

Each figure is written as soon as it is measured.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli
from bench.cli import BadArgument
from bench.device_constants import device_file

if TYPE_CHECKING:
    from bench.device_constants.figures import Figure, Session

PROGRAM = "bench.device_constants"
# A device that is silent for so long after the time budget is taken for hung.
GRACE_S = 30.0


@cli.command(PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit status: 0 done, 1 a figure cannot be had, 2 bad arguments, no GPU."""
    began = time.monotonic()
    parser = cli.Parser(prog=f"python -m {PROGRAM}", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--time-budget", default="20s", help="such as 10s or 1m; then no figure is begun (default: 20s)"
    )
    parser.add_argument("--out", type=Path, help="the file (default: beside the values that are tuned for this GPU)")
    parser.add_argument("--bytes", metavar="N,...", help="of the tensors that are copied and read (16 MiB to 2 GiB)")
    given = parser.parse_args(argv)
    end = began + cli.seconds("--time-budget", given.time_budget)
    sizes = None if given.bytes is None else _sizes(given.bytes)

    # Here, because torch takes seconds to import, which a bad argument need not wait for.
    from bench.measure import devices, environment

    device = devices.gpu()
    described = environment.collect(device, {})
    file = device_file.choose(given.out, described["device_name"])

    from bench.device_constants import figures  # with Triton's kernels, which nobody needs without a GPU

    with ended_when_hung(end + GRACE_S):
        return measure(figures.FIGURES, lambda: figures.session(device, sizes or figures.SIZES), end, file, described)


def measure(
    figures: Mapping[str, Callable[[Session], Figure]],
    opened: Callable[[], Session],
    end: float,
    file: Path,
    described: Mapping[str, Any],
) -> int:
    """Writes each figure that can be begun by `end` (of time.monotonic); returns the exit status."""
    from bench.measure import environment

    status, on = 0, None
    for name, figure in figures.items():
        if time.monotonic() >= end:
            print(f"{name}: not measured, the time budget was spent")
            continue
        try:
            on = opened()  # a new one: what fails in a session is left out of all that follows in it
            found = figure(on)
        except Exception as error:
            line = next(iter(str(error).splitlines()), "")
            print(f"{PROGRAM}: error: {name}: {type(error).__name__}: {line}", file=sys.stderr)
            status = 1
            if on is None or not on.gpu.alive():
                break
            continue
        kept = device_file.read(file).get("constants", {})
        known = {**found, "with": device_file.versions(described, environment.now())}
        device_file.update(file, described["device_name"], constants={**kept, name: known})
        print(f"{name}: {_listed(found)}", flush=True)
    if file.exists():
        print(f"written: {file}")
    return status


@contextmanager
def ended_when_hung(limit: float) -> Iterator[None]:
    """Ends the process with status 1 where this has not been left by `limit` (of time.monotonic)."""
    left = threading.Event()

    def watch() -> None:
        if not left.wait(limit - time.monotonic()):
            print(f"{PROGRAM}: error: the device hangs; what was measured is written", file=sys.stderr, flush=True)
            os._exit(1)  # the main thread waits for the device, where no exception reaches it

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _sizes(text: str) -> tuple[int, ...]:
    found = cli.values("--bytes", text)
    for value in found:
        if not re.fullmatch("[1-9][0-9]{3,12}", value):
            raise BadArgument("--bytes", f"{value!r} is not a number of bytes from 1000 to {10**13 - 1}")
    return tuple(sorted(map(int, found)))


def _listed(found: Figure) -> str:
    parts = []
    for key, value in found.items():
        if isinstance(value, dict):
            parts += [f"{int(size):,} bytes {one:g} GB/s" for size, one in value.items()]
        else:
            parts.append(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
