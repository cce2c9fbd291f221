"""The parts of an audit that read texts, rows and weights: what to measure, and which settings it depends on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset

from balora.audit.classes import class_log_probabilities, encoded_rows, measure_classes
from balora.audit.kinds import CLASSIFIER
from balora.audit.layers import measure_layers
from balora.audit.metrics import Metric
from balora.audit.models import Audited
from balora.audit.settings import AuditSettings
from balora.audit.texts import TextSet, measure_texts, own_texts, user_texts, wikitext2
from balora.audit.weights import measure_weights
from balora.audit.words import measure_exchanged_rows, measure_exchanged_texts, measure_prompts
from balora.counterfactual import read_word_groups
from balora.data import expand_path
from balora.evaluation.bias.templates import OCCUPATIONS, PEOPLE, read_texts
from balora.evaluation.perplexity import read_pages


@dataclass(frozen=True)
class Part:
    """One part of an audit.

    Attributes:
        name: Name of its file.
        settings: The settings that its metrics depend on, by name.
        measure: From the models to the part's metrics.
    """

    name: str
    settings: dict[str, Any]
    measure: Callable[[Audited], list[Metric]]


def part_of_weights(settings: AuditSettings) -> Part:
    """Return the part that counts new directions in the tuned weights."""
    how = {"limit": settings.max_matrices, "seed": settings.seed}
    return Part("weights", settings.of("max_matrices", "seed"), lambda audited: measure_weights(audited, **how))


def parts_of_texts(settings: AuditSettings, rows: Dataset | None) -> list[Part]:
    """Return a causal language model's parts: passes over texts, and the shift of its layers on their first windows.

    Raises:
        BALoraError: If WikiText-2 cannot be read.
    """
    common = ("max_length", "max_samples", "seed")
    how = {"batch_size": settings.batch_size, "seed": settings.seed}
    sources: dict[str, tuple[tuple[str, ...], Callable[[Audited], TextSet]]] = {}
    if settings.own_texts:
        own = (settings.own_texts, settings.own_length, settings.seed)
        # Writing takes a while, and two parts read the texts.
        sources["own_texts"] = ("own_texts", "own_length"), cache(lambda audited: own_texts(audited, *own))
    if settings.wikitext2:
        pages = read_pages(expand_path(settings.wikitext2))[: settings.max_samples]
        sources["wikitext2"] = ("wikitext2",), lambda audited: wikitext2(audited, pages, settings.max_length)
    if rows is not None:
        file, of_data = Path(settings.data_file).name, ("data_file", "data_split", "text_column")
        sources["data_file"] = of_data, lambda audited: user_texts(audited, file, rows["text"], settings.max_length)
    parts = [
        Part(
            name,
            settings.of(*depends, *common),
            lambda audited, read=read: measure_texts(audited, read(audited), **how),
        )
        for name, (depends, read) in sources.items()
    ]
    if sources and settings.adapter is not None:
        depends, last = [*sources.values()][-1]  # the user's texts rather than the base's

        def layers(audited: Audited) -> list[Metric]:
            read = last(audited)
            return measure_layers(audited, [{"input_ids": text[0][0]} for text in read.windows], on=read.name, **how)

        parts.append(Part("layers", settings.of(*depends, *common), layers))
    return parts


def parts_of_words(settings: AuditSettings, rows: Dataset | None) -> list[Part]:
    """Return a causal language model's parts on words of a list: prompts without them, and sentences with them.

    Raises:
        BALoraError: If words or prompts cannot be read.
    """
    if not settings.words:
        return []
    groups = read_word_groups(expand_path(settings.words))
    prompts = read_texts(OCCUPATIONS if settings.prompts is None else expand_path(settings.prompts))
    on = "our prompts about occupations" if settings.prompts is None else Path(settings.prompts).name
    how: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}
    own = {"our sentences": read_texts(PEOPLE)}
    if rows is not None:
        own[Path(settings.data_file).name] = rows["text"]

    def exchanged(audited: Audited) -> list[Metric]:
        return [f for on, texts in own.items() for f in measure_exchanged_texts(audited, groups, texts, on=on, **how)]

    depends = ("words", "data_file", "data_split", "text_column", "max_samples", "seed")
    return [
        Part(
            "prompts",
            settings.of("words", "prompts", "seed"),
            lambda a: measure_prompts(a, groups, prompts, on=on, **how),
        ),
        Part("words", settings.of(*depends), exchanged),
    ]


def parts_of_rows(settings: AuditSettings, rows: Dataset, kind: str) -> list[Part]:
    """Return a classifier's parts on its predictions, and every encoder's on the shift of its layers.

    Raises:
        BALoraError: If words cannot be read.
    """
    name = Path(settings.data_file).name
    depends = ("data_file", "data_split", "text_column", "text_pair_column", "label_column", "label_names")
    depends += ("max_length", "max_samples", "seed")
    how: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}

    def classes(audited: Audited) -> list[Metric]:
        answers = class_log_probabilities(
            audited, rows, on=name, max_length=settings.max_length, batch_size=settings.batch_size
        )
        labels = rows["label"] if "label" in rows.column_names else None
        return measure_classes(audited, *answers, labels=labels, on=name, seed=settings.seed)

    def layers(audited: Audited) -> list[Metric]:
        encoded = encoded_rows(audited, rows, on=name, max_length=settings.max_length)
        return measure_layers(audited, encoded, on=name, **how)

    parts = [Part("classes", settings.of(*depends), classes)] if kind == CLASSIFIER else []
    if settings.adapter is not None:
        parts.append(Part("layers", settings.of(*depends), layers))
    if kind == CLASSIFIER and settings.words and settings.text_pair_column is None:
        groups = read_word_groups(expand_path(settings.words))
        texts = rows["text"]
        how_exchanged = how | {"on": name, "max_length": settings.max_length}
        parts.append(
            Part(
                "words",
                settings.of("words", *depends),
                lambda a: measure_exchanged_rows(a, groups, texts, **how_exchanged),
            )
        )
    return parts
