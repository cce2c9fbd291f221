"""The parts of an audit that are benchmarks: any of the registry, asked of base and tuned model alike."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from balora.audit.kinds import CLASSIFIER
from balora.audit.metrics import Metric, measured
from balora.audit.models import Audited, Model
from balora.audit.parts import Part
from balora.audit.settings import FILES, AuditSettings
from balora.errors import BALoraError
from balora.evaluation.benchmarks import REGISTRY, Benchmark, PromptSettings, benchmarks_for
from balora.evaluation.benchmarks.benchmark import GIVEN, read_problems
from balora.recipe.parse import keyword_arguments


def parts_of_benchmarks(settings: AuditSettings, kind: str, label_names: Sequence[str]) -> list[Part]:
    """Read the problems of every benchmark that the settings name, in `benchmarks` or by a flat setting.

    Args:
        settings: Settings of the audit.
        kind: Kind of model, one of `balora.audit.kinds.KINDS`' values.
        label_names: A classifier's classes.

    Raises:
        BALoraError: If one of a benchmark's settings or files is wrong.
    """
    parts = []
    for name, benchmark in benchmarks_for(kind).items():
        flat = _flat_settings(settings, name)
        is_flat = any(getattr(settings, option) for option in _options_of(benchmark, flat))
        if name in settings.benchmarks and is_flat:
            raise BALoraError(f"benchmarks: {name} is also given by {', '.join(flat)}; give it once")
        if name in settings.benchmarks:
            arguments = _own_arguments(benchmark, settings.benchmarks[name])
            depends = {"benchmarks": settings.benchmarks[name]}
        elif is_flat:
            arguments = {key: value for option in flat for key, value in _argument(settings, option).items()}
            depends = {option: getattr(settings, option) for option in flat}
        else:
            continue
        taken = inspect.signature(benchmark.read).parameters
        names = ["max_samples", "seed", *(["batch_size"] if "seed" in taken else [])]  # it changes what is drawn
        names += ["label_names", "max_length"] if kind == CLASSIFIER else []
        depends |= {option: getattr(settings, option) for option in names}
        common = {option: getattr(settings, option) for option in ("max_samples", "seed") if option in taken}
        problems = read_problems(benchmark, common | arguments, label_names=label_names, training_texts=frozenset())
        how = {
            "batch_size": settings.batch_size,
            "max_length": settings.max_length,
            "label_names": label_names,
            "directory": Path(settings.output_dir or "", "benchmarks"),
            "seed": settings.seed,
        }
        measure = partial(measure_benchmark, benchmark=benchmark, problems=problems, **how)
        parts.append(Part(name, depends, measure))
    return parts


def measure_benchmark(
    audited: Audited,
    benchmark: Benchmark,
    problems: Any,
    *,
    batch_size: int,
    max_length: int | None = None,
    label_names: Sequence[str] = (),
    directory: Path = Path(),
    seed: int = 0,
) -> list[Metric]:
    """Ask base and tuned model, and compare their metrics unit by unit.

    Args:
        audited: The models.
        benchmark: A benchmark of their kind.
        problems: Its problems, at least one.
        batch_size: Texts at a time.
        max_length: Tokens that a classifier's text is cut to; `None` cuts nothing.
        label_names: A classifier's classes.
        directory: Folder for files that the benchmark writes while it asks.
        seed: Seed of the bootstrap.
    """
    prompts = PromptSettings(
        tokenizer=audited.tokenizer,
        batch_size=batch_size,
        kind=audited.kind,
        context=audited.context(),
        max_length=max_length,
        label_names=label_names,
    )
    benchmark.check(problems, prompts)

    def ask(model: Model) -> Any:
        side = "tuned" if model is audited.tuned else "base"
        return benchmark.ask(model, problems, replace(prompts, directory=directory / side))

    before, after = audited.answers(ask)
    base = {} if before is None else benchmark.metrics(problems, before)
    metrics = []
    for name, units in benchmark.metrics(problems, after).items():
        listed = benchmark.audit_name(name)
        if listed is not None and len(units.columns):
            how = {"on": units.on or benchmark.title, "unit": benchmark.unit, "seed": seed}
            metrics.append(measured(listed, units, base.get(name), **how))
    return metrics


def _flat_settings(settings: AuditSettings, benchmark: str) -> dict[str, str]:
    """Return the flat settings that stand for a benchmark's own, with the arguments that they are."""
    found = {field.name: field.metadata.get("benchmark", ("", "")) for field in fields(settings)}
    return {name: argument for name, (owner, argument) in found.items() if owner == benchmark}


def check_benchmarks(settings: AuditSettings, kind: str) -> None:
    """Validate which benchmarks the settings name, before a file is read.

    Raises:
        BALoraError: If a benchmark is unknown or for another kind of model, or a flat setting lacks another.
    """
    known = benchmarks_for(kind)
    if unknown := [name for name in settings.benchmarks if name not in known]:
        raise BALoraError(f"benchmarks: unknown {unknown[0]!r}; for a {kind} there are {', '.join(known)}")
    for benchmark in {own.name: own for own in REGISTRY}.values():
        flat = _flat_settings(settings, benchmark.name)
        required = _options_of(benchmark, flat)
        for option in required:
            if getattr(settings, option) and kind not in benchmark.models:
                kinds = " or ".join(benchmark.models)
                raise BALoraError(f"{option}: is for a {kinds}, and this is a {kind}; leave it out")
        missing = [option for option in required if not getattr(settings, option)]
        for option in flat.keys() & {*FILES}:
            if getattr(settings, option) and missing:
                raise BALoraError(f"{option}: has no effect without a {missing[0]}; name a {missing[0]}")


def _options_of(benchmark: Benchmark, flat: Mapping[str, str]) -> list[str]:
    """Return those of a benchmark's flat settings that `read` has no default for."""
    parameters = inspect.signature(benchmark.read).parameters
    return [option for option, argument in flat.items() if parameters[argument].default is inspect.Parameter.empty]


def _argument(settings: AuditSettings, option: str) -> dict[str, Any]:
    """Return the arguments of `Benchmark.read` that a flat setting stands for."""
    metadata = AuditSettings.__dataclass_fields__[option].metadata
    _, argument = metadata["benchmark"]
    return {argument: getattr(settings, option)} | metadata["further"]


def _own_arguments(benchmark: Benchmark, settings: dict[str, Any]) -> dict[str, Any]:
    """Validate settings of `benchmarks`, as a recipe has them."""
    try:
        typed = keyword_arguments(benchmark.read, settings, given={*GIVEN})
    except BALoraError as error:
        raise BALoraError(f"benchmarks: {benchmark.name}: {error}") from error
    return {name: typed[name] for name in settings}
