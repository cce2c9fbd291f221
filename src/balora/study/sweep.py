"""A sweep: every method at every combination of some settings' values, as methods of a study."""

from dataclasses import replace
from itertools import product
from typing import Any

from balora.recipe import Recipe
from balora.report.figures.sweep import value_name


def sweep_points(recipe: Recipe) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return each method and the values it is trained at, by label, in the order they run."""
    combinations = [dict(zip(recipe.sweep, values, strict=True)) for values in product(*recipe.sweep.values())]
    points = product(combinations, recipe.methods)
    return {_label(method, combination): (method, combination) for combination, method in points}


def _label(method: str, combination: dict[str, Any]) -> str:
    return " ".join([method, *(f"{key}={value_name(value)}" for key, value in combination.items())])


def swept(recipe: Recipe) -> Recipe:
    """Return the recipe with the points of its sweep as methods; unchanged without a sweep."""
    if not recipe.sweep:
        return recipe
    points = sweep_points(recipe)
    settings = {
        label: {"method": method, **recipe.method_settings.get(method, {}), **combination}
        for label, (method, combination) in points.items()
    }
    baseline = next((label for label, (method, _) in points.items() if method == recipe.baseline), None)
    return replace(recipe, sweep={}, methods=list(points), method_settings=settings, baseline=baseline)
