"""Measurements of a run's model, and the figures that a report draws from what they saved.

`measure` runs them all. `answers`, `geometry`, `noise` and `hatecheck` each save details in the run's folder and draw
them for the report, by way of `finished`.
"""
