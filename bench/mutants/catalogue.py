"""All mutants, in the order in which they are run."""

from bench.mutants import (
    batch,
    batch_family,
    batch_gradients,
    groups,
    norms,
    rows,
    shared,
    synchronized,
    weights,
    wide_rows,
)

MUTANTS = (
    *rows.MUTANTS,
    *wide_rows.MUTANTS,
    *batch.MUTANTS,
    *batch_gradients.MUTANTS,
    *batch_family.MUTANTS,
    *synchronized.MUTANTS,
    *groups.MUTANTS,
    *norms.MUTANTS,
    *weights.MUTANTS,
    *shared.MUTANTS,
)
