"""Run B against run A: what is slower, what is faster, what is wrong now. Imports neither torch nor triton."""
