"""The parts of an audit: what is measured, on which files, and what its figures depend on.

Every file is read, and everything that can be wrong with it said, before a model is loaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from balora.audit.classes import class_log_probabilities, measure_classes
from balora.audit.figures import Figure
from balora.audit.hate import measure_hatecheck
from balora.audit.items import measure_bbq, measure_continuations, measure_stereoset
from balora.audit.layers import measure_layers
from balora.audit.models import CAUSAL, CLASSIFIER, MASKED, Audited
from balora.audit.pairs import measure_pairs
from balora.audit.settings import AuditSettings
from balora.audit.texts import measure_texts, own_texts, user_texts, wikitext2
from balora.audit.weights import measure_weights
from balora.audit.words import measure_exchanged_rows, measure_exchanged_texts, measure_prompts
from balora.counterfactual import read_word_groups
from balora.data import expand_path, load_table, to_classification_rows
from balora.data.columns import check_strings, column_values
from balora.errors import BALoraError
from balora.evaluation.bias import (
    SentencePair,
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
from balora.evaluation.bias.templates import CONTINUATIONS, OCCUPATIONS, PEOPLE, read_texts
from balora.evaluation.wikitext import read_pages

#: Which kinds of model a setting says something of.
FOR = {
    "wikitext2": (CAUSAL,),
    "crows_pairs": (CAUSAL, MASKED),
    "stereoset": (CAUSAL,),
    "bbq": (CAUSAL,),
    "winobias": (CAUSAL, MASKED),
    "winogender": (CAUSAL, MASKED),
    "hatecheck": (CLASSIFIER,),
    "scorer": (CAUSAL,),
    "label_column": (CLASSIFIER,),
    "text_pair_column": (CLASSIFIER,),
}


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Attributes:
        name: As its file is called.
        settings: Those that its figures depend on, by name.
        measure: From the models to its figures.
    """

    name: str
    settings: tuple[str, ...]
    measure: Callable[[Audited], list[Figure]]


def plan(settings: AuditSettings, kind: str, label_names: Sequence[str]) -> list[Part]:
    """What an audit of a model of this kind consists of.

    Args:
        settings: What is asked for.
        kind: One of `balora.audit.models.KINDS`' values.
        label_names: Of a classifier.

    Raises:
        BALoraError: If a file is wrong, or is of no use for such a model.
    """
    for setting, kinds in FOR.items():
        if getattr(settings, setting) and kind not in kinds:
            raise BALoraError(f"{setting}: is for a {' or '.join(kinds)}, and this is a {kind}; leave it out")
    rows = _rows(settings, kind, label_names) if settings.data_file else None
    if kind == CAUSAL:
        parts = _of_texts(settings, rows)
    else:
        parts = _of_rows(settings, rows, kind)
    if settings.adapter is not None:
        how = {"limit": settings.max_matrices, "seed": settings.seed}
        parts.append(Part("weights", ("max_matrices", "seed"), lambda a: measure_weights(a, **how)))
    parts += _of_pairs(settings) + _of_items(settings)
    if settings.hatecheck:
        parts.append(_hatecheck(settings, label_names))
    if not parts:
        raise BALoraError(f"nothing to measure of a {kind} without texts: give data_file, or a benchmark's file")
    return parts


def _rows(settings: AuditSettings, kind: str, label_names: Sequence[str]) -> Dataset:
    """The user's texts in `text`, with `text_pair` and `label` where there are such."""
    source = expand_path(settings.data_file)
    table = load_table(source, split=settings.data_split)
    if settings.label_column is not None:
        rows, _ = to_classification_rows(
            table,
            source=source,
            text_column=settings.text_column,
            text_pair_column=settings.text_pair_column,
            label_column=settings.label_column,
            label_names=list(label_names),
        )
    else:
        columns = {"text": settings.text_column, "text_pair": settings.text_pair_column}
        values = {key: column_values(table, name, source=source) for key, name in columns.items() if name is not None}
        for key, texts in values.items():
            check_strings(texts, source=source, column=columns[key])
        rows = Dataset.from_dict(values)
    return rows.select(range(min(len(rows), settings.max_samples or len(rows))))


def _of_texts(settings: AuditSettings, rows: Dataset | None) -> list[Part]:
    """Of a causal language model: passes over texts, and what its layers make of the first of them."""
    common = ("max_length", "max_samples", "seed")
    of_data = ("data_file", "data_split", "text_column")
    how = {"batch_size": settings.batch_size, "seed": settings.seed}
    parts, sources = [], []
    if settings.own_texts:
        own = (settings.own_texts, settings.own_length, settings.seed)
        sources.append(("own_texts", ("own_texts", "own_length"), lambda a: own_texts(a, *own)))
    if settings.wikitext2:
        path = expand_path(settings.wikitext2)
        read_pages(path)
        sources.append(
            ("wikitext2", ("wikitext2",), lambda a: wikitext2(a, path, settings.max_length, settings.max_samples))
        )
    if rows is not None:
        file = Path(settings.data_file).name
        sources.append(("data_file", of_data, lambda a: user_texts(a, file, rows["text"], settings.max_length)))
    for name, depends, read in sources:
        parts.append(Part(name, (*depends, *common), lambda a, read=read: measure_texts(a, read(a), **how)))
    if sources and settings.adapter is not None:
        _, depends, read = sources[-1]  # the user's own rather than the base's
        parts.append(
            Part("layers", (*depends, *common), lambda a: measure_layers(a, [w[0][0] for w in read(a).windows], **how))
        )
    if settings.words:
        parts += _of_words(settings, rows)
    return parts


def _of_words(settings: AuditSettings, rows: Dataset | None) -> list[Part]:
    """Of a causal language model: prompts that name nobody, and sentences that name somebody."""
    groups = read_word_groups(expand_path(settings.words))
    prompts = read_texts(OCCUPATIONS if settings.prompts is None else expand_path(settings.prompts))
    on = "our prompts about occupations" if settings.prompts is None else Path(settings.prompts).name
    how: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}
    own = {"our sentences": read_texts(PEOPLE)}
    if rows is not None:
        own[Path(settings.data_file).name] = rows["text"]

    def exchanged(audited: Audited) -> list[Figure]:
        return [f for on, texts in own.items() for f in measure_exchanged_texts(audited, groups, texts, on=on, **how)]

    depends = ("words", "data_file", "data_split", "text_column", "max_samples", "seed")
    return [
        Part("prompts", ("words", "prompts", "seed"), lambda a: measure_prompts(a, groups, prompts, on=on, **how)),
        Part("words", depends, exchanged),
    ]


def _of_rows(settings: AuditSettings, rows: Dataset | None, kind: str) -> list[Part]:
    """Of a classifier, what it says of rows; of every encoder, what its layers make of them."""
    if rows is None:
        return []
    name = Path(settings.data_file).name
    depends = ("data_file", "data_split", "text_column", "text_pair_column", "label_column", "label_names")
    depends += ("max_length", "max_samples", "seed")
    how: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}
    cut = {"truncation": settings.max_length is not None, "max_length": settings.max_length}

    def classes(audited: Audited) -> list[Figure]:
        answers = class_log_probabilities(
            audited, rows, max_length=settings.max_length, batch_size=settings.batch_size
        )
        labels = rows["label"] if "label" in rows.column_names else None
        return measure_classes(audited, *answers, labels=labels, on=name, seed=settings.seed)

    def layers(audited: Audited) -> list[Figure]:
        texts = [rows[key] for key in ("text", "text_pair") if key in rows.column_names]
        return measure_layers(audited, audited.tokenizer(*map(list, texts), **cut)["input_ids"], **how)

    parts = [Part("classes", depends, classes)] if kind == CLASSIFIER else []
    if settings.adapter is not None:
        parts.append(Part("layers", depends, layers))
    if kind == CLASSIFIER and settings.words and settings.text_pair_column is None:
        groups = read_word_groups(expand_path(settings.words))
        texts = rows["text"]
        how |= {"on": name, "max_length": settings.max_length}
        parts.append(Part("words", ("words", *depends), lambda a: measure_exchanged_rows(a, groups, texts, **how)))
    return parts


def _of_pairs(settings: AuditSettings) -> list[Part]:
    """Pairs of sentences. CrowS-Pairs' differ in rare words, so that they are compared token by token."""
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


def _of_items(settings: AuditSettings) -> list[Part]:
    """StereoSet, BBQ, and texts written behind prompts."""
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
        rate = load_scorer(settings.scorer, batch_size=settings.batch_size)
        sampling = how | {
            "per_prompt": settings.continuations_per_prompt, "max_new_tokens": settings.continuation_tokens
        }  # fmt: skip
        depends = ("scorer", "continuations", "continuations_per_prompt", "continuation_tokens", *common)
        parts.append(Part("continuations", depends, lambda a: measure_continuations(a, prompts, rate, **sampling)))
    return parts


def _hatecheck(settings: AuditSettings, label_names: Sequence[str]) -> Part:
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
    return Part("hatecheck", depends, lambda audited: measure_hatecheck(audited, cases, hateful, **how))
