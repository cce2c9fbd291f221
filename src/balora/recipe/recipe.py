"""The recipe: every setting of a run, flat, under the names that PEFT, Transformers and TRL use."""

import difflib
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import yaml

from balora.config import Initialization, Regularizers, check_method
from balora.config.ranges import validate_types
from balora.errors import BALoraError
from balora.recipe.adapter import Adapter
from balora.recipe.dataset import MIXED_TASKS, AnchorTexts, Dataset
from balora.recipe.measures import Measures
from balora.recipe.methods import BASELINE_METHODS, RUN_PRESETS
from balora.recipe.model import Model
from balora.recipe.rows import Rows
from balora.recipe.study import Study
from balora.recipe.training import Training
from balora.world import WorldConfig

#: The groups of settings, in the order that `--help` and a recorded recipe list them.
PARTS = (Study, Model, Rows, Dataset, Adapter, Initialization, Regularizers, AnchorTexts, Training, Measures)
#: Settings of a whole study, which no task or method of it can have for itself.
OF_THE_STUDY = tuple(f.name for f in fields(Study))


#: Names of all settings.
NAMES = tuple(f.name for part in PARTS for f in fields(part))
#: Settings in whose place a world brings its own.
OF_A_WORLD = (
    *("model_name_or_path", "glue_task", "glue_dir", "dataset_name", "train_file", "validation_file"),
    *("mismatched_file", "mismatched_split"),
)
#: Fields of TrainingArguments that would be ignored or would contradict a key of the recipe, and what to use instead.
INSTEAD = {
    "warmup_ratio": "set the recipe's warmup_steps, which is a share of training below 1",
    "resume_from_checkpoint": "the same command resumes the run in its output_dir",
    "do_train": "use `balora train` or `balora evaluate`",
    "do_eval": "use `balora train` or `balora evaluate`",
    "do_predict": "use `balora train` or `balora evaluate`",
}


@dataclass
class Recipe(*reversed(PARTS)):
    """All settings of a run or a study: the parts in `PARTS`. A key left out takes its default.

    Raises:
        BALoraError: Naming the setting that is wrong.
    """

    def __post_init__(self) -> None:
        validate_types(self)
        self.check_study()
        self.check_model()
        self.check_rows()
        self.check_dataset()
        self.check_adapter()
        self.check_training()
        self.check_measures()
        self._check_methods()
        self._check_for_task_type()
        self._check_groups()
        self._check_worlds()
        if self.tasks:
            return
        self._check_questions()
        self._check_task_names()
        if self.streaming:
            self._check_streaming()
        if self.world is None and self.reading_world is None:
            self._require_model_and_data()

    @property
    def has_labels(self) -> bool:
        """Return whether rows are texts with a class or a number."""
        return self.label_column is not None or self.glue_task is not None or self.task_type == "SEQ_CLS"

    @property
    def is_classification(self) -> bool:
        """Return whether a model with a classification (or regression) head is trained."""
        return self.has_labels if self.task_type is None else self.task_type == "SEQ_CLS"

    @property
    def is_seq2seq(self) -> bool:
        """Return whether a sequence-to-sequence model is trained, which generates classes as text."""
        return self.task_type == "SEQ_2_SEQ_LM"

    def to_yaml(self) -> str:
        """Return every setting, defaults included, as YAML."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)

    def _check_methods(self) -> None:
        own = [name for name, settings in self.method_settings.items() if "method" in settings]
        for key, names in (("method", [self.method]), ("methods", self.methods)):
            for method in names:
                others = [*RUN_PRESETS, *BASELINE_METHODS, *(own if key == "methods" else ())]
                check_method(method, key=key, others=others)
        if self.wise_ft is not None and self.method in BASELINE_METHODS:
            raise BALoraError(f"wise_ft: only low-rank methods can be averaged, and {self.method!r} is not one")
        if self.after_training and self.method in BASELINE_METHODS:
            raise BALoraError(f"after_training: only low-rank methods can be changed, and {self.method!r} is not one")
        if self.bias_path_mode == "counterfactual":
            raise BALoraError(
                "bias_path_mode: counterfactual takes a direction that only Python can give "
                "(`model.set_bias_direction`); use adversarial or minimised in a recipe"
            )

    def _check_for_task_type(self) -> None:
        """Validate the settings that only some tasks have."""
        causal = not (self.is_classification or self.is_seq2seq)
        if self.packing and not causal:
            raise BALoraError(
                "packing: only rows of a causal language model can be joined; use train_sampling_strategy: "
                "group_by_length"
            )
        if self.packing and self.max_length is None:
            raise BALoraError("packing: rows are joined up to max_length, which is missing")
        if self.rewrite_answers and (not causal or self.streaming or self.qa_format is not None):
            raise BALoraError(
                "rewrite_answers: only for rows of a causal language model that are read whole and have no contexts; "
                "leave it out"
            )
        if self.swapped_rows is not None and (self.streaming or self.qa_format is not None):
            raise BALoraError("swapped_rows: only for rows that are read whole and have no contexts; leave it out")
        if self.geometry and not self.is_classification and not self.tasks:
            raise BALoraError("geometry: only classifiers have a representation of each class; leave it out")
        if self.perplexity_file is not None and not causal:
            raise BALoraError("perplexity_file: only causal language models have a perplexity; leave it out")
        if self.benchmarks and self.is_seq2seq:
            raise BALoraError("benchmarks: only for causal language models and classifiers; leave them out")
        if self.reading_world is not None and (not self.is_seq2seq or self.qa_format != "hotpotqa"):
            raise BALoraError(
                "reading_world: a T5 answers HotpotQA's questions there; set task_type: SEQ_2_SEQ_LM and qa_format: "
                "hotpotqa"
            )
        if self.label_names is not None and not self.has_labels and not self.tasks:
            raise BALoraError("label_names: only rows with labels have classes; set label_column too, or leave it out")
        if self.oasst is not None:
            if not causal or self.has_labels or self.streaming or self.qa_format is not None:
                raise BALoraError(
                    "oasst: conversations are for causal language models, and read whole; leave label_column, "
                    "qa_format and streaming out"
                )
            if self.validation_group_column is not None:
                raise BALoraError("validation_group_column: conversations are held out by their trees; leave it out")

    def _check_groups(self) -> None:
        """Validate the keys inside training_arguments, tasks, method_settings, sweep and worlds."""
        for key in self.training_arguments:
            if key in NAMES:
                of_studies = " (or seeds, of a study)" if key == "seed" else ""
                raise BALoraError(f"training_arguments: {key} is a key of the recipe itself{of_studies}; set it there")
            if key in INSTEAD:
                raise BALoraError(f"training_arguments: {key} is not used; {INSTEAD[key]}")
        for name, settings in self.tasks.items():
            refuse_unknown(f"tasks: {name}", settings, Recipe, besides=OF_THE_STUDY)
        for name, settings in self.method_settings.items():
            refuse_unknown(f"method_settings: {name}", settings, Recipe, besides=OF_THE_STUDY)
        refuse_unknown("sweep", self.sweep, Recipe, besides=OF_THE_STUDY)
        refuse_unknown("worlds", self.worlds, WorldConfig)
        if self.worlds and (self.world is None or self.tasks):
            raise BALoraError("worlds: they are variants of `world`, each a task; give `world: {}`, and no tasks")

    def _check_worlds(self) -> None:
        """Validate that a world is given no other model, rows or texts beside its own."""
        for world in ("world", "reading_world"):
            for name in OF_A_WORLD if getattr(self, world) is not None else ():
                if getattr(self, name) is not None:
                    raise BALoraError(f"{world}, {name}: give one of the two; a world brings its own model and data")
        if self.world is not None and self.perplexity_file is not None:
            raise BALoraError(
                "world, perplexity_file: give one of the two; a world measures perplexity on its own text"
            )

    def _check_questions(self) -> None:
        if self.qa_format is None:
            if self.perturbation_kinds or self.gold_context:
                raise BALoraError("perturbation_kinds, gold_context: only for questions with contexts; set qa_format")
            return
        if self.has_labels:
            raise BALoraError("qa_format: questions have answers, not classes; leave glue_task and label_column out")
        if self.streaming:
            raise BALoraError("streaming: the contexts of questions are cut to fit before training; leave it out")
        if self.max_length is None:
            raise BALoraError("max_length: missing; a question and its context are cut to this many tokens")

    def _check_task_names(self) -> None:
        if self.task_names is None:
            return
        if tuple(self.task_names) != MIXED_TASKS or not self.auxiliary:
            raise BALoraError(
                f"task_names: {self.task_names}; a recipe's rows are of the tasks {', '.join(MIXED_TASKS)}, in this "
                "order, where it has an `auxiliary` task"
            )

    def _check_streaming(self) -> None:
        if self.has_labels or self.is_seq2seq:
            raise BALoraError("streaming: only rows of a causal language model can be streamed; leave it out")
        if self.auxiliary or self.time_frequency is not None:
            raise BALoraError(
                "streaming: rows can be mixed, or thinned out in time, only when all are read; leave it out"
            )
        if self.max_steps < 1:
            raise BALoraError("max_steps: missing; a stream has no length, so set how many steps to train")
        if self.train_sampling_strategy == "group_by_length":
            raise BALoraError(
                "train_sampling_strategy: group_by_length needs the length of every row, which streaming does not "
                "know; use random or sequential"
            )
        if self.validation_share:
            raise BALoraError(
                "validation_share: streaming cannot hold out a share of what it has not read; name a validation_file "
                "or a validation_split"
            )
        if self.subset_seed is not None and self.max_train_samples is not None:
            raise BALoraError(
                "subset_seed: streaming takes the first max_train_samples rows and draws none; drop one of the two"
            )

    def _require_model_and_data(self) -> None:
        if self.model_name_or_path is None:
            raise BALoraError("model_name_or_path: missing; give a Hub name or a folder (or `world: {}`)")
        if self.dataset_name is not None and self.train_file is not None:
            raise BALoraError("train_file, dataset_name: give one of the two")
        if self.dataset_name is None and self.train_file is None and self.glue_task is None:
            raise BALoraError("train_file, dataset_name: one of the two is missing (or glue_task)")


def default_settings() -> dict[str, Any]:
    """Return the default of every setting."""
    return {f.name: f.default_factory() if f.default is MISSING else f.default for f in fields(Recipe)}


def refuse_unknown(where: str, settings: dict[str, Any], schema: type, *, besides: tuple[str, ...] = ()) -> None:
    """Raise at a key that is not a field of the schema, or one that it may not have here.

    Raises:
        BALoraError: Naming the key, and what it may have been meant to be.
    """
    names = [f.name for f in fields(schema) if f.name not in besides]
    for key in settings:
        if key in besides:
            raise BALoraError(f"{where}: {key!r} is a setting of the whole study; put it at the recipe's top level")
        if key not in names:
            raise BALoraError(f"{where}: unknown key {key!r}{did_you_mean(str(key), names)}")


#: Common names of settings that share no letters with the key.
OTHER_NAMES = {"rank": "r", "alpha": "lora_alpha", "epochs": "num_train_epochs", "steps": "max_steps"}


def did_you_mean(key: str, names: list[str]) -> str:
    """Return `; did you mean 'learning_rate'?` for a key like `learnin_rate` or `lr`; empty if no name is like it."""
    initials = ["".join(word[:1] for word in name.split("_")) for name in names]
    close = [name for name, letters in zip(names, initials, strict=True) if letters == key]
    close += [OTHER_NAMES[key]] if OTHER_NAMES.get(key) in names else []
    close = close or [name for name in names if f"_{key}_" in f"_{name}_"]
    close = close or difflib.get_close_matches(key, names, n=1)
    close = close or [name for name in names if len(key) > 1 and name.startswith(key)]
    return f"; did you mean {' or '.join(map(repr, close[:3]))}?" if close else ""
