"""Continuations as a benchmark: what a model writes about several groups, and how differently it is rated (BOLD)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from balora.data import expand_path
from balora.evaluation.benchmarks.benchmark import Benchmark, PromptSettings, save_json, save_rows
from balora.evaluation.bias import (
    Prompt,
    check_sampling,
    continuation_scores,
    load_scorer,
    read_bold,
    sample_continuations,
)
from balora.evaluation.bias.templates import CONTINUATIONS as OUR_PROMPTS
from balora.evaluation.generation import check_room
from balora.evaluation.metric import SKEWED, Definition, Units, gap_of_means, mean

DOMAINS = ("gender", "nationality", "religion", "race", "profession", "political_ideology", "religious_ideology")


@dataclass(frozen=True)
class Prompts:
    """Prompts about several groups, how texts are sampled behind them, and the scorer's name."""

    prompts: Sequence[Prompt]
    scorer: str
    sampling: dict[str, float]

    @property
    def texts(self) -> list[str]:
        """The prompts' texts."""
        return [prompt.text for prompt in self.prompts]


@dataclass(frozen=True)
class Rated:
    """The texts written behind each prompt, and their scores `(N, n)`."""

    written: Sequence[Sequence[str]]
    scores: np.ndarray


def _read(
    *,
    scorer: str,
    file: str | list[str] | None = None,
    max_samples: int | None = None,
    per_prompt: int = 5,
    max_new_tokens: int = 30,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Prompts:
    """Read prompts about several groups.

    Args:
        scorer: `transformers:MODEL:LABEL` or `package.module:function`; see `load_scorer`.
        file: A file of BOLD, several, or a folder of them; `None` for our own prompts about gender, nationality and
            religion.
        max_samples: The first so many prompts of each group.
        per_prompt: Texts for each prompt.
        max_new_tokens: Longest text.
        temperature: Temperature of sampling.
        top_p: Sample from the likeliest tokens whose probabilities reach this.
        seed: Seed of sampling.
    """
    files = [file] if isinstance(file, str) else file
    paths = [expand_path(path) for path in files] if files else [OUR_PROMPTS]
    prompts = [prompt for path in paths for prompt in read_bold(path, max_samples=max_samples)]
    check_sampling(per_prompt, max_new_tokens, temperature, top_p)
    sampling = {
        "per_prompt": per_prompt,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    load_scorer(scorer)  # for its errors; it takes no memory while models are trained
    return Prompts(prompts, scorer, sampling)


def _check(problems: Prompts, prompts: PromptSettings) -> None:
    check_room(prompts.tokenizer, problems.texts, problems.sampling["max_new_tokens"], prompts.context)
    load_scorer(problems.scorer)(problems.texts[:2])


def _ask(model: PreTrainedModel, problems: Prompts, prompts: PromptSettings) -> Rated:
    how = {"batch_size": prompts.batch_size}
    written = sample_continuations(model, prompts.tokenizer, problems.texts, **problems.sampling, **how)
    rate = load_scorer(problems.scorer, **how)
    return Rated(written, rate([text for own in written for text in own]).reshape(len(written), -1))


def _metrics(problems: Prompts, rated: Rated) -> dict[str, Units]:
    scores = rated.scores.mean(1)  # (N,)
    domains = np.array([prompt.domain for prompt in problems.prompts])
    groups = np.array([prompt.group for prompt in problems.prompts])
    found, columns = {}, []
    for domain in dict.fromkeys(domains.tolist()):
        own = domains == domain
        members = (groups[:, None] == np.unique(groups[own])) & own[:, None]  # (N, G)
        columns.append(np.concatenate([members * scores[:, None], members], 1))  # (N, 2G)
        found[f"continuations_{domain}_gap"] = Units(columns[-1][own], gap_of_means, on=domain)
    ends = np.cumsum([part.shape[1] for part in columns])[:-1]

    def mean_gap(sums: np.ndarray) -> np.ndarray:
        return np.mean([gap_of_means(own) for own in np.split(sums, ends, axis=1)], axis=0)

    return {
        "continuations_score": mean(scores),
        "continuations_gap": Units(np.concatenate(columns, 1), mean_gap),
        **found,
    }


def _save(problems: Prompts, rated: Rated, directory: Path) -> None:
    """Write all scores, by group and with their intervals, and every text."""
    save_json(directory / "continuations.json", continuation_scores(problems.prompts, rated.scores))
    rows = [
        asdict(prompt) | {"continuation": text, "score": score}
        for prompt, own, scores in zip(problems.prompts, rated.written, rated.scores.tolist(), strict=True)
        for text, score in zip(own, scores, strict=True)
    ]
    save_rows(directory / "continuations.jsonl", rows)


def _audit_name(name: str) -> str | None:
    """Return the name in an audit, which lists the gap of each domain under one name, and not their mean."""
    if name == "continuations_gap":
        return None
    return "continuations_gap" if name.endswith("_gap") else name


CONTINUATIONS = Benchmark(
    name="continuations",
    title="continuations",
    read=_read,
    ask=_ask,
    metrics=_metrics,
    check=_check,
    save=_save,
    measures_bias=True,
    unit="prompts",
    audit_name=_audit_name,
    definitions={
        "continuations_score": Definition(
            None,
            "Mean score of all texts that the model wrote, by the scorer named in the settings.",
            title="continuations: mean score",
            formula="Mean of the scorer over all texts that the model wrote.",
            section=SKEWED,
        ),
        "continuations_gap": Definition(
            "lower",
            "How differently what the model writes about several groups is rated, largest minus smallest mean score: "
            "0 is alike for all. A mean over kinds of groups.",
            title="continuations: gap between groups",
            formula="Largest minus smallest mean score over groups of the texts that the model writes behind prompts "
            "about them (Dhamala et al., 2021), by the scorer named in the settings. It is above 0 by chance alone, "
            "and its own interval says little: look at the change.",
            section=SKEWED,
        ),
        **{
            f"continuations_{domain}_gap": Definition(
                "lower",
                "Largest minus smallest mean score of what the model writes about these groups: 0 is alike for all.",
            )
            for domain in DOMAINS
        },
    },
)
