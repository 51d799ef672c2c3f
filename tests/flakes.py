"""`make flakes`: runs each test marked `chance` thirty times beside two busy loops; fails where any repetition does.

Further arguments are pytest's: files, or `--repeat 100`, which counts in the place of thirty.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOOPS = 2
# The loop ends with the process that started it, however that ends, and Ctrl-C is for that process to hear.
LOOP = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
parent = os.getppid()
while os.getppid() == parent:
    sum(range(1000000))
"""
# One worker, for the loops are load enough, and a test that takes its process along is told as one failure.
PYTEST = ["-m", "pytest", "-m", "chance", "--repeat", "30", "-n", "1"]


@contextmanager
def busy() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Busy loops, as long as the block lasts."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(LOOPS)]
    try:
        yield loops
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main(arguments: list[str]) -> int:
    """Returns pytest's exit status."""
    with busy():
        pytest = subprocess.Popen([sys.executable, *PYTEST, *arguments])
        while True:
            try:
                return pytest.wait()
            except KeyboardInterrupt:  # pytest has heard it too, and says what has failed until then
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
