"""A comparison as plain values, for JSON."""

from __future__ import annotations

from math import isfinite
from typing import Any

from bench.compare.comparison import Comparison, Pair


def plain(comparison: Comparison) -> dict[str, Any]:
    """Counts by provider, every cell, what is in one run alone, differences and notes; times in microseconds."""
    return {
        "a": str(comparison.a),
        "b": str(comparison.b),
        "threshold": comparison.threshold,
        "counts": {provider: dict(count) for provider, count in comparison.counts.items()},
        "cells": [_cell(pair) for pair in comparison.pairs],
        "only_a": [" ".join(reversed(cell)) for cell in comparison.only_a],
        "only_b": [" ".join(reversed(cell)) for cell in comparison.only_b],
        "differences": list(comparison.differences),
        "notes": list(comparison.notes),
    }


def _cell(pair: Pair) -> dict[str, Any]:
    figures = {
        "change": pair.change,
        "low": pair.low,
        "high": pair.high,
        "latency_us_a": pair.a.latency_us,
        "latency_us_b": pair.b.latency_us,
    }
    told = {
        "why": pair.why,
        "status_a": pair.a.status,
        "status_b": pair.b.status,
        "growth": str(pair.growth or ""),
    }
    known = {name: value for name, value in figures.items() if value is not None and isfinite(value)}
    return {"cell": pair.key, "provider": pair.provider, "verdict": pair.verdict, "said": pair.words, **known, **told}
