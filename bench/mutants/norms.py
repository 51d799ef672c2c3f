"""Mutants of kernels/batch_norm/lp.py: norms, ties and what follows from them."""

from __future__ import annotations

from bench.mutants.planting import Mutant

# By the function that is spoilt: name, what is planted, the text, what it becomes.
_EDITS = {
    "norms_of_tiles": (
        ("lp-signed-sum", "p = 1 without the magnitude", "tl.abs(x) if P", "x if P"),
        ("lp-last-tile-alone", "the norm of the last tile", "renormalize(size, tl", "renormalize(none, tl"),
    ),
    "merge_peaks": (("lp-ties-of-one", "ties of one side", " + tl.where(peak_b == peak, ties_b, 0.0)", ""),),
    "_lp_norm_merge_kernel": (
        ("lp-not-averaged-root", "the square in the norm's place", 'if P == "2":', "if False:"),
        ("lp-running-norm-kept", "running_norm as it was", "+ norm * m).to", "+ old_norm * m).to"),
    ),
    "_lp_norm_input_gradient_kernel": (
        ("lp-gradient-of-the-mean", "dx without dsigma/dx", "(dy - c2) - direction * c1", "dy - c2"),
        ("lp-centred-slope", "p = 2 with p = 1's slope", 'if P != "2":', 'if P != "0":'),
        ("lp-every-element-a-maximum", "all share the peak", "tl.abs(x) == peak", "tl.abs(x) <= peak"),
    ),
}

MUTANTS = tuple(
    Mutant(name, "batch_norm.lp", within, about, old, new)
    for within, edits in _EDITS.items()
    for name, about, old, new in edits
)
