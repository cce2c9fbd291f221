"""Mix the rows of several tasks into one training set, in a ratio that holds exactly over an epoch."""

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from datasets import Dataset, concatenate_datasets

from balora.errors import BALoraError


def stack_tasks(datasets: Mapping[str, Dataset]) -> Dataset:
    """Concatenate the rows of all tasks and add a column `task` with each row's task.

    Raises:
        BALoraError: If there is no task, the tasks' columns differ, or one of them has a column `task`.
    """
    if not datasets:
        raise BALoraError("mixture: no tasks; name at least one")
    first, *_ = datasets
    for name, dataset in datasets.items():
        if "task" in dataset.column_names:
            raise BALoraError(f"mixture: {name!r} has a column 'task' already; rename it")
        one, other = datasets[first].features, dataset.features
        different = next((column for column in {**one, **other} if one.get(column) != other.get(column)), None)
        if different is not None:
            raise BALoraError(
                f"mixture: column {different!r} is {one.get(different, 'absent')} in {first!r} and "
                f"{other.get(different, 'absent')} in {name!r}; all tasks need the same columns"
            )
    return concatenate_datasets([d.add_column("task", [name] * len(d)) for name, d in datasets.items()])


def mix_tasks(
    datasets: Mapping[str, Dataset],
    ratio: Mapping[str, float],
    *,
    seed: int,
    total: int | None = None,
    epoch: int = 0,
) -> Dataset:
    """Draw the shuffled rows of one epoch, with the tasks in a ratio.

    Each task gets its share of the total, rounded by the largest remainder (ties go to the task named first in the
    ratio). From a larger dataset that many rows are drawn without replacement. A smaller one is repeated whole, so
    that the numbers of times that its rows occur differ by at most one.

    Args:
        datasets: Rows by task. Their columns must be the same.
        ratio: A number from 0 per task; only the proportions count. Decimals are exact: 0.3 is three tenths.
        seed: Seed of the draw and the order, together with the epoch. The global generators are not used.
        total: Rows of the epoch; by default as many as possible without repeating any.
        epoch: Another epoch draws other rows, if not all are taken, and another order.

    Returns:
        The tasks' columns, and `task`.

    Raises:
        BALoraError: If the ratio is invalid or does not name the tasks, a task with a share has no rows, the total is
            below 1, or `stack_tasks` fails.
    """
    rows = stack_tasks(datasets)
    available = {name: len(dataset) for name, dataset in datasets.items()}
    shares = _shares(ratio, available)
    total = _most_without_repeats(shares, available) if total is None else total
    if total < 1:
        raise BALoraError(f"mixture: total is {total}; the epoch needs at least 1 row")
    generator = np.random.default_rng((seed, epoch))
    starts = dict(zip(available, np.cumsum([0, *available.values()])[:-1], strict=True))
    counts = zip(shares, _largest_remainder([total * share for share in shares.values()]), strict=True)
    drawn = [starts[name] + _passes(available[name], count, generator) for name, count in counts]
    return rows.select(generator.permutation(np.concatenate(drawn)))


def _shares(ratio: Mapping[str, float], available: Mapping[str, int]) -> dict[str, Fraction]:
    """Return each task's exact share of the total, without the tasks whose share is 0."""
    if set(ratio) != set(available):
        raise BALoraError(
            f"mixture: the ratio names {', '.join(map(repr, ratio))} and the tasks are "
            f"{', '.join(map(repr, available))}; give each task one number"
        )
    for name, part in ratio.items():
        if not 0 <= part < math.inf:
            raise BALoraError(f"mixture: {name!r} has {part} in the ratio; use a number from 0")
        if part > 0 and available[name] == 0:
            raise BALoraError(f"mixture: {name!r} has no rows; give it 0 in the ratio, or rows")
    parts = {name: Fraction(str(part)) for name, part in ratio.items() if part > 0}
    if not parts:
        raise BALoraError("mixture: every number of the ratio is 0; at least one must be positive")
    return {name: part / sum(parts.values()) for name, part in parts.items()}


def _most_without_repeats(shares: Mapping[str, Fraction], available: Mapping[str, int]) -> int:
    return math.floor(min(available[name] / share for name, share in shares.items()))


def _largest_remainder(quotas: list[Fraction]) -> np.ndarray:
    """Round quotas to integers with the same sum, which is an integer, by the largest remainder."""
    floors = [math.floor(quota) for quota in quotas]
    by_rest = sorted(range(len(quotas)), key=lambda i: floors[i] - quotas[i])
    for i in by_rest[: int(sum(quotas)) - sum(floors)]:
        floors[i] += 1
    return np.asarray(floors)


def _passes(available: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw `count` row numbers below `available`, in passes that each hold every row in a new order."""
    passes = [generator.permutation(available) for _ in range(-(-count // available))]
    return np.concatenate([*passes, np.empty(0, dtype=int)])[:count]
