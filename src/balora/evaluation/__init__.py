"""Measurements of a fine-tuned model: its task, its drift from the base model, its biases."""

from balora.evaluation.overhead import parameter_overhead
from balora.evaluation.shift import linear_cka, measure_representation_shift, representation_shift
from balora.model.drift import measure_drift

__all__ = [
    "linear_cka",
    "measure_drift",
    "measure_representation_shift",
    "parameter_overhead",
    "representation_shift",
]
