"""What the passes of norms of rows share."""

from __future__ import annotations

from normlib.kernels.row_norm.plan import RowPlan


def kind(plan: RowPlan) -> str:
    """Of a plan of rows."""
    return "rows in registers" if plan.chunks else "loop over a row"
