"""The parts of an audit that a benchmark's file makes: pairs of sentences, items to choose among, cases, prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balora.audit.hate import measure_hatecheck
from balora.audit.items import measure_bbq, measure_continuations, measure_stereoset
from balora.audit.pairs import measure_pairs
from balora.audit.parts import Part
from balora.audit.settings import AuditSettings
from balora.data import expand_path
from balora.errors import BALoraError
from balora.evaluation.bias import (
    SentencePair,
    check_sampling,
    load_scorer,
    read_bbq,
    read_bold,
    read_crows_pairs,
    read_hatecheck,
    read_occupations,
    read_stereoset,
    read_winobias,
    read_winogender,
    winogender_pairs,
)
from balora.evaluation.bias.templates import CONTINUATIONS


def parts_of_pairs(settings: AuditSettings) -> list[Part]:
    """Pairs of sentences. CrowS-Pairs' differ in rare words, so that how strong a preference is, is per token."""
    found: list[tuple[str, str, Sequence[SentencePair], bool]] = []
    if settings.crows_pairs:
        found.append(("crows_pairs", "CrowS-Pairs", read_crows_pairs(expand_path(settings.crows_pairs)), True))
    if settings.winobias:
        folder = expand_path(settings.winobias)
        pairs = [pair for split in ("dev", "test") for pair in read_winobias(folder, split)]
        found.append(("winobias", "WinoBias", pairs, False))
    if settings.winogender:
        folder = Path(expand_path(settings.winogender))
        occupations = read_occupations(folder / "occupations-stats.tsv")
        pairs = winogender_pairs(read_winogender(folder / "all_sentences.tsv"), occupations)
        found.append(("winogender", "Winogender", pairs, False))
    parts = []
    for name, title, pairs, per_token in found:
        how = {"per_token": per_token, "on": title, "batch_size": settings.batch_size, "seed": settings.seed}
        own = pairs[: settings.max_samples]
        parts.append(
            Part(name, (name, "max_samples", "seed"), lambda a, own=own, how=how: measure_pairs(a, own, **how))
        )
    return parts


def parts_of_items(settings: AuditSettings) -> list[Part]:
    """StereoSet, BBQ, and texts written behind prompts.

    Raises:
        BALoraError: If a file is wrong, prompts are given without a scorer, or a number is out of range.
    """
    how: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}
    common = ("max_samples", "seed")
    parts = []
    if settings.stereoset:
        terms = read_stereoset(expand_path(settings.stereoset))[: settings.max_samples]
        parts.append(Part("stereoset", ("stereoset", *common), lambda a: measure_stereoset(a, terms, **how)))
    if settings.bbq:
        questions = [item for file in settings.bbq for item in read_bbq([expand_path(file)])[: settings.max_samples]]
        parts.append(Part("bbq", ("bbq", *common), lambda a: measure_bbq(a, questions, **how)))
    if settings.scorer:
        files = [expand_path(file) for file in settings.continuations] or [CONTINUATIONS]
        prompts = [prompt for file in files for prompt in read_bold(file, max_samples=settings.max_samples)]
        check_sampling(settings.continuations_per_prompt, settings.continuation_tokens, 1.0, 1.0)
        rate = load_scorer(settings.scorer, batch_size=settings.batch_size)
        sampling = how | {
            "per_prompt": settings.continuations_per_prompt, "max_new_tokens": settings.continuation_tokens
        }  # fmt: skip
        # The batch size takes part in what is drawn.
        depends = ("scorer", "continuations", "continuations_per_prompt", "continuation_tokens", "batch_size", *common)
        parts.append(Part("continuations", depends, lambda a: measure_continuations(a, prompts, rate, **sampling)))
    elif settings.continuations:
        raise BALoraError("continuations: who rates what is written? name a scorer")
    return parts


def parts_of_cases(settings: AuditSettings, label_names: Sequence[str]) -> list[Part]:
    """HateCheck, of a classifier with these classes.

    Raises:
        BALoraError: If the file is wrong, or no class is that of hate.
    """
    if not settings.hatecheck:
        return []
    cases = read_hatecheck(expand_path(settings.hatecheck))[: settings.max_samples]
    if settings.hateful_label not in label_names:
        raise BALoraError(
            f"hateful_label: {settings.hateful_label!r} is none of the model's classes, {', '.join(label_names)}; "
            "name it, or all of them with label_names"
        )
    hateful = list(label_names).index(settings.hateful_label)
    how: dict[str, Any] = {
        "max_length": settings.max_length, "batch_size": settings.batch_size, "seed": settings.seed
    }  # fmt: skip
    depends = ("hatecheck", "hateful_label", "label_names", "max_length", "max_samples", "seed")
    return [Part("hatecheck", depends, lambda audited: measure_hatecheck(audited, cases, hateful, **how))]
