"""Run B against run A: what is slower, what is faster, what is wrong now. Imports neither torch nor triton."""

from bench.compare.comparison import Comparison
from bench.compare.judging import Incomparable, compare

__all__ = ["Comparison", "Incomparable", "compare"]
