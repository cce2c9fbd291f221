"""The settings of an audit, on the command line or from Python."""

from argparse import ArgumentError
from dataclasses import dataclass, field, fields
from itertools import takewhile
from typing import Any

from balora.errors import BALoraError
from balora.recipe.parse import (
    cause,
    command_parser,
    files_given,
    read_settings,
    refuse_unknown_options,
    without_nulls,
)

#: Metadata of a setting that names a file, or a list of them: what depends on it is measured again if that changes.
FILE = {"file": True}


def _of(benchmark: str, argument: str, *, file: bool = False, **further: Any) -> dict[str, Any]:
    """Return the metadata of a setting that is short for a benchmark's own in `benchmarks`.

    Args:
        benchmark: The benchmark's name.
        argument: The setting's name there.
        file: Whether it names a file.
        further: Settings of the benchmark that come with it.
    """
    return {"file": file, "benchmark": (benchmark, argument), "further": further}


@dataclass(frozen=True)
class AuditSettings:
    """Settings of `balora audit`. Paths may have `${NAME:-default}` and `~`; what is not named is not measured.

    Attributes:
        model: The base: a folder, or a name on the Hub.
        adapter: Folder of a PEFT adapter, or of a fully fine-tuned model; null to audit the base alone.
        output_dir: Folder for audit.json and audit.html. The same command resumes where it was stopped, and one that
            names more measures only what is missing.
        own_texts: Number of texts that the base of a language model writes for the audit, which needs no corpus then;
            0 for none.
        own_length: Tokens of each.
        wikitext2: A file of WikiText-2, as published.
        data_file: Your own texts: a local file or a dataset on the Hub. For a classifier, rows.
        data_split: Split of a dataset on the Hub.
        text_column: Column of the texts.
        text_pair_column: Column of second texts, where a classifier takes pairs.
        label_column: Column of a classifier's labels; null where there are none.
        label_names: A classifier's classes in the order of their ids; null for the names in its configuration.
        benchmarks: Benchmarks by name, each with its settings, as in a recipe (docs/benchmarks.md). The settings from
            crows_pairs to hateful_label, and from scorer to continuation_tokens, are short for some of them.
        crows_pairs: `crows_pairs_anonymized.csv`.
        stereoset: StereoSet's `dev.json`, or a list of its intrasentence items.
        bbq: Files of BBQ, such as `Age.jsonl`.
        winobias: Folder of WinoBias.
        winogender: Folder of Winogender.
        hatecheck: `test_suite_cases.csv`, for a classifier with a class `hateful`.
        hateful_label: Name of that class.
        words: List of words whose exchange should change nothing: `gender`, `religion`, `nationality` or a file with a
            group a line; null for none.
        prompts: File of prompts, one a line, behind which a preference for one of the words shows; null for our own
            prompts about occupations.
        scorer: Scorer of texts that the models write: `transformers:MODEL:LABEL`, or `package.module:function` from
            texts to numbers; null for none.
        continuations: Files of prompts by group in BOLD's form; empty for a small one of our own.
        continuations_per_prompt: Texts written behind each prompt.
        continuation_tokens: Tokens of each.
        max_samples: The first so many texts, rows, pages, pairs or items of each file; null for all.
        max_length: Tokens that a row is cut to, and that a language model reads at once, in windows; null for the
            model's context, beyond which a row is an error.
        max_matrices: Number of weights whose singular vectors are compared, evenly spread over the model; null for
            all.
        batch_size: Texts at a time; fewer of long ones.
        dtype: Type of the weights: `auto`, `float32`, `bfloat16` or `float16`.
        use_safetensors: Refuse weights that are pickles (`pytorch_model.bin`); false reads only those, and only
            tensors of them. Code in a model's folder is never run.
        seed: Seed of the base's texts, continuations and intervals.
    """

    model: str
    adapter: str | None = None
    output_dir: str | None = None
    own_texts: int = 64
    own_length: int = 128
    wikitext2: str | None = field(default=None, metadata=FILE)
    data_file: str | None = field(default=None, metadata=FILE)
    data_split: str | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str | None = None
    label_names: list[str] | None = None
    benchmarks: dict[str, dict] = field(default_factory=dict)
    crows_pairs: str | None = field(default=None, metadata=_of("crows_pairs", "file", file=True))
    stereoset: str | None = field(default=None, metadata=_of("stereoset", "file", file=True))
    bbq: list[str] = field(default_factory=list, metadata=_of("bbq", "files", file=True))
    winobias: str | None = field(default=None, metadata=_of("winobias", "folder", file=True, split="both"))
    winogender: str | None = field(default=None, metadata=_of("winogender", "folder", file=True))
    hatecheck: str | None = field(default=None, metadata=_of("hatecheck", "file", file=True))
    hateful_label: str = field(default="hateful", metadata=_of("hatecheck", "hateful_label"))
    words: str | None = field(default="gender", metadata=FILE)
    prompts: str | None = field(default=None, metadata=FILE)
    scorer: str | None = field(default=None, metadata=_of("continuations", "scorer"))
    continuations: list[str] = field(default_factory=list, metadata=_of("continuations", "file", file=True))
    continuations_per_prompt: int = field(default=5, metadata=_of("continuations", "per_prompt"))
    continuation_tokens: int = field(default=32, metadata=_of("continuations", "max_new_tokens"))
    max_samples: int | None = None
    max_length: int | None = None
    max_matrices: int | None = 32
    batch_size: int = 16
    dtype: str = "auto"
    use_safetensors: bool = True
    seed: int = 0

    def of(self, *names: str) -> dict[str, Any]:
        """Return some of the settings, by name."""
        return {name: getattr(self, name) for name in names}


#: Settings that name files, which may change while their names stay.
FILES = tuple(own.name for own in fields(AuditSettings) if own.metadata.get("file"))


def parse_audit(arguments: list[str]) -> AuditSettings:
    """Parse `MODEL [ADAPTER] [--key value …]`; `--config FILE` has such settings as YAML.

    Raises:
        BALoraError: If a key is unknown, a value has the wrong type, or there is no model.
    """
    parser = command_parser("audit", "MODEL [ADAPTER]", [AuditSettings])
    parser.add_argument("--config", action="config", help="A YAML file of these settings.")
    named = list(takewhile(lambda argument: not argument.startswith("-"), arguments[:2]))
    given = [f"--{name}={value}" for name, value in zip(("model", "adapter"), named, strict=False)]
    further = arguments[len(named) :]
    refuse_unknown_options(parser, further)
    for path in files_given(further, "--config"):
        read_settings(path, AuditSettings)
    try:
        # MODEL and ADAPTER come last, so that they override a file's.
        settings = parser.parse_args([*further, *given]).as_dict()
    except (ArgumentError, ValueError, TypeError) as error:
        raise BALoraError(cause(str(error))) from error
    settings.pop("config")
    return AuditSettings(**without_nulls(AuditSettings, settings))
