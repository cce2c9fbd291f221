"""How a score falls as questions are asked otherwise: a panel for each way, a line for each method."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from balora.report.results import Run
from balora.report.sweep import sweep_figure


def robustness_figure(
    measured: Sequence[tuple[Run, Mapping[str, Mapping[str, Mapping[str, float]]]]], metric: str = "f1"
) -> Figure:
    """Means over seeds against the strength of each kind of perturbation.

    Args:
        measured: Runs of one task, each with its scores by kind, strength and name. At strength 0 a score is the
            run's own.
        metric: The score.
    """
    kinds = list(measured[0][1])
    points, found = {}, []
    for run, by_kind in measured:
        strengths = {0.0: dict.fromkeys(kinds, run.metrics[metric])}
        for kind, by_strength in by_kind.items():
            for strength, scores in by_strength.items():
                strengths.setdefault(float(strength), {})[kind] = scores[metric]
        for strength, values in strengths.items():
            label = f"{run.method} {strength}"
            points[label] = (run.method, {"strength": strength})
            found.append(replace(run, method=label, metrics=values))
    return sweep_figure(found, points, "strength", kinds)
