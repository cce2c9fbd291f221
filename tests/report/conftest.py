import math

import pytest

from balora.report import PRETRAINED, Run

SCORES = {
    "lora": [(0.812, 0.61, 14.2), (0.846, 0.53, 13.8)],
    "pissa": [(0.835, 0.82, 15.9), (0.851, 0.94, 16.4)],
    "balora": [(0.848, 0.18, 11.3), (0.862, 0.24, 11.6)],
}


@pytest.fixture
def runs() -> list[Run]:
    """The untouched model, then three methods over seeds 42 and 43."""
    made = [Run(PRETRAINED, 42, "mrpc", {"accuracy": 0.684, "kl_to_base": 0.0, "perplexity": 10.9}, 0.0, 640.0, 0)]
    for index, (method, seeds) in enumerate(SCORES.items()):
        for seed, (accuracy, kl, perplexity) in zip((42, 43), seeds, strict=True):
            metrics = {"accuracy": accuracy, "kl_to_base": kl, "perplexity": perplexity}
            made.append(Run(method, seed, "mrpc", metrics, 12.34 + index, 1812.0 + 40 * index, 1_234_567))
    return made


@pytest.fixture
def histories(runs: list[Run]) -> dict[str, list[dict]]:
    """Logs of every fine-tuned run; only balora logs the regularizers."""
    made = {}
    for index, run in enumerate(run for run in runs if run.method != PRETRAINED):
        rows = []
        for step in range(10, 201, 10):
            task = 0.3 + 0.5 * math.exp(-step / (60 + 8 * index)) + 0.02 * math.sin(step / 7 + index)
            row = {"step": step, "epoch": step / 100, "learning_rate": 1e-4, "grad_norm": 1.0, "loss": task}
            if run.method == "balora":
                parts = {
                    "loss_task": task,
                    "loss_consistency": 0.12 * (1 - math.exp(-step / 50)) + 0.01 * index,
                    "loss_diversity": 0.4 - 0.0005 * step,
                    "loss_spectral": 0.9 - 0.001 * step + 0.02 * index,
                }
                row |= parts | {"loss": sum(parts.values()) / 2}
            rows.append(row)
            if step % 50 == 0:
                rows.append({"step": step, "eval_loss": task + 0.05, "eval_runtime": 0.5})
        made[run.id] = [*rows, {"step": 200, "train_loss": 0.4, "train_runtime": 12.0}]
    return made


METRIC_OF = {"cola": "matthews", "stsb": "pearson", "rte": "accuracy"}
BASES = {"cola": 0.40, "stsb": 0.86, "rte": 0.60}
GAINS = {"lora": 0.0, "pissa": 0.001, "balora": 0.02}


@pytest.fixture
def metric_of() -> dict[str, str]:
    return METRIC_OF


@pytest.fixture
def suite() -> list[Run]:
    """Three tasks of different metrics, three methods, seeds 1 to 3; the untouched model comes last."""
    made = []
    for task, base in BASES.items():
        for method, gain in GAINS.items():
            for seed in (1, 2, 3):
                score = base + gain + 0.004 * math.sin(5 * seed * len(task + method))
                metrics = {METRIC_OF[task]: score, "kl_to_base": 0.5 - 10 * gain * (1 + 0.1 * seed)}
                made.append(Run(method, seed, task, metrics, 10.0, 800.0, 1000 + len(task)))
    made += [
        Run(PRETRAINED, 1, task, {METRIC_OF[task]: base - 0.3, "kl_to_base": 0.0}, 0.0, 600.0, 0)
        for task, base in BASES.items()
    ]
    return made
