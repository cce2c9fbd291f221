"""Measurements: what a fine-tune learned, kept and lost."""

from balora.evaluation.drift import measure_drift

__all__ = ["measure_drift"]
