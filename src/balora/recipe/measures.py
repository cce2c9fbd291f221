"""Settings of the measurements after training."""

from dataclasses import dataclass, field

from balora.config.ranges import Count, Share
from balora.errors import BALoraError
from balora.evaluation.noise import NOISE_KINDS
from balora.recipe.paths import RecipePath


@dataclass
class Measures:
    """Measurements after training."""

    benchmarks: dict[str, dict] = field(default_factory=dict)
    """Benchmarks, by name, each with its settings. A language model: gsm8k, math, humaneval, mbpp, mt_bench,
    wikitext2, crows_pairs, winobias, winogender, stereoset, bbq, counterfactual, continuations, harness; a classifier:
    hatecheck, counterfactual (docs/benchmarks.md)."""
    noise_kinds: list[str] = field(default_factory=list)
    """Noise to add to the evaluation's inputs, token or embedding: stability, shift and bias under it."""
    noise_levels: list[Share] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4])
    """Levels of the noise: shares of the tokens replaced, or deviations relative to the embeddings'."""
    perplexity_file: RecipePath | None = None
    """Text to measure perplexity on before and after: what the model should not forget."""
    perplexity_column: str = "text"
    """Text column of perplexity_file."""
    max_perplexity_samples: Count | None = None
    """Number of its texts to use, from the first; null for all."""
    geometry: bool = False
    """Measure how a classifier's representations and logits separate the classes (silhouettes), and draw maps and
    confusion matrices in the report."""
    task_metric: str | None = None
    """Metric of the report's task axis; null picks by task."""
    drift_metric: str | None = None
    """Metric of the report's drift axis; null picks by task."""

    def check_measures(self) -> None:
        """Validate the kinds of noise.

        Raises:
            BALoraError: If one is unknown.
        """
        for kind in self.noise_kinds:
            if kind not in NOISE_KINDS:
                raise BALoraError(f"noise_kinds: unknown {kind!r}; there are {', '.join(NOISE_KINDS)}")
