"""The recipe: every setting of a run, flat, under the names that PEFT, Transformers and TRL use."""

import difflib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from balora.config import FROM_DATA, METHODS, Schedule
from balora.data.glue import GLUE
from balora.errors import BALoraError
from balora.world import WorldConfig

#: Low-rank methods of ours by the name a table shows: how the adapter starts, and whether the regularizers are on.
#: Those that start from batches of data are for the library.
RUN_METHODS: dict[str, tuple[str, bool]] = {
    **{name: (name, False) for name in METHODS if name not in FROM_DATA},
    **{f"{name}+reg": (name, True) for name in METHODS if name not in FROM_DATA and name != "pissa"},
    "ba-lora": ("pissa", True),
    "lora+": ("lora", False),
}
#: Methods to compare with, without regularizers.
RIVAL_METHODS = ("full", "bitfit", "houlsby", "pfeiffer", "adalora")


#: Settings that must be at least 1.
COUNTS = (
    "jobs",
    "logging_steps",
    "save_steps",
    "gradient_accumulation_steps",
    "per_device_train_batch_size",
    "r",
)
#: Settings of a whole study, which no task or method of it can have for itself.
OF_THE_STUDY = (
    "name",
    "output_dir",
    "methods",
    "baseline",
    "method_settings",
    "sweep",
    "tasks",
    "task",
    "seed",
    "seeds",
    "jobs",
)


@dataclass
class Recipe:
    """All settings of a run or a study. A key left out takes the default shown.

    Attributes:
        name: Name of the work, as tables and results show it.
        output_dir: Folder of the run. The same command resumes what it holds, and a study may grow there by methods,
            seeds and tasks; other settings are refused.
        method: What `balora train` trains: lora, rslora, dora, pissa, olora, milora, lora-fa; the same with `+reg` for
            the regularizers, ba-lora being PiSSA with them; lora+; full, bitfit, houlsby, pfeiffer, adalora.
        methods: What `balora compare` trains: names as above, or of your own that method_settings explains.
        method_settings: Settings of single methods, by name, over the task's and the recipe's. With a `method` among
            them, the name is your own for that method so set (`{task-only: {method: ba-lora, spectral_weight: 0}}`).
        baseline: The method that the report compares the others with; null for the first of `methods`.
        sweep: Settings to vary, each with its values (`{r: [1, 8, 64]}`): `balora sweep` trains every method at every
            combination.
        tasks: Several tasks for `balora compare`, by name: each the settings in which it differs.
        task: Of several tasks, the one for `balora train` and `balora calibrate`.
        seed: Seed of `balora train`: head, adapter start, data order, dropout.
        seeds: Seeds of `balora compare`.
        jobs: Runs that `balora compare` has going at once.
        model_name_or_path: Hub name, local folder, or `package:NAME/folder` for one inside a Python package.
        dtype: Precision the base model is loaded in.
        task_type: CAUSAL_LM, SEQ_CLS or SEQ_2_SEQ_LM (T5), which writes classes as text; null means SEQ_CLS when
            label_column or glue_task is given, else CAUSAL_LM.
        world: Knobs of the controlled world, in place of a model and data of your own; `{}` for its defaults.
        glue_task: GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte. Names columns, labels and metric, and the
            Hub's rows where no file is named.
        glue_dir: Folder of the official GLUE download (CoLA/train.tsv …), in place of the Hub.
        dataset_name: Hub dataset, in place of files.
        dataset_config_name: Its configuration.
        train_split: Its split to train on.
        validation_split: Its split to evaluate on.
        train_file: Local .jsonl, .json, .csv, .tsv, .parquet or .txt.
        validation_file: The same, to evaluate on.
        validation_share: Evaluate on this share of the training rows, then not trained on, in place of a set.
        mismatched_split: A second split to evaluate on (MNLI's); its metrics end in _mismatched.
        mismatched_file: The same as a file.
        column_names: Names for the columns of a file that has no header row.
        prompt_column: Prompt of a prompt–completion row.
        completion_column: Completion of a prompt–completion row.
        prompt_template: Text around the prompt, with `{prompt}` in it.
        messages_column: Conversation of a chat row; the tokenizer's chat template renders it.
        text_column: Text of a plain-text or classification row.
        text_pair_column: Second text of a classification row.
        label_column: Label of a classification row.
        class_ratio: Thin training rows out to this ratio of classes, in order of their ids, such as [100, 10, 1].
        max_train_samples: Use so many training rows.
        max_eval_samples: Use so many evaluation rows.
        subset_seed: Seed that max_train_samples, max_eval_samples, class_ratio and validation_share draw by; with
            null the first two take the first rows.
        max_length: Cut rows to this many tokens; null cuts nothing and stops at a row beyond the model's context.
        max_target_length: The same for what a sequence-to-sequence model is to write.
        r: Rank of the adapter.
        lora_alpha: Scaling is lora_alpha / r.
        lora_dropout: Dropout on the adapter's input.
        target_modules: Module names, or all-linear; null for PEFT's default for the model.
        bottleneck_size: Width of houlsby's and pfeiffer's adapters.
        modules_to_save: Modules trained in full beside the adapter.
        pissa_niter: Subspace iterations of PiSSA's randomized SVD; null for the exact one.
        consistency_weight: λ1; null for the published value (0.025 generation, 0.15 classification).
        diversity_weight: λ2; null for the published value (0.005, 0.03).
        spectral_weight: λ3; null for the published value (0.005, 0.03).
        diversity_loss: What λ2 weighs: covariance (of classes) or entropy (among the top K); null by task.
        temperature: T of the consistency term.
        consistency_direction: forward is KL(teacher ‖ student), reverse KL(student ‖ teacher).
        top_k: K of the entropy term.
        spectral_k: k of the spectral term; null for the published value (10, 5).
        clip_spectral_k: Keep k below the number of classes, where the term would otherwise be constant.
        consistency_schedule: constant, cosine or two_phase; null as published.
        diversity_schedule: The same for λ2.
        spectral_schedule: The same for λ3.
        sample_rate: Share of the sequences that the teacher sees (generation), at random; weighted by 1/sample_rate.
        fused_lm_head: Compute the generation objective from hidden states, never all logits at once.
        teacher_cache_mb: Memory for teacher features (classification); beyond it, a file. 0 for no cache.
        learning_rate: Peak learning rate.
        loraplus_lr_ratio: With lora+, B's learning rate over A's.
        num_train_epochs: Epochs, unless max_steps is given.
        max_steps: Optimizer steps; −1 for num_train_epochs.
        per_device_train_batch_size: Rows per device and micro-batch.
        gradient_accumulation_steps: Micro-batches per step.
        train_sampling_strategy: random, sequential, or group_by_length, which batches rows of like length.
        packing: Join short rows of a language model's text up to max_length (TRL's).
        per_device_eval_batch_size: Rows per device when evaluating.
        lr_scheduler_type: Learning-rate schedule.
        warmup_steps: Steps in which the rate rises; below 1, the share of training.
        weight_decay: AdamW's.
        max_grad_norm: Gradient clipping.
        bf16: bfloat16 autocast.
        gradient_checkpointing: Recompute activations in backward.
        logging_steps: Steps between rows of the loss curves.
        save_steps: Steps between checkpoints.
        training_arguments: Any further field of Transformers' TrainingArguments.
        perplexity_file: Text to measure perplexity on before and after: what the model should not forget.
        perplexity_column: Its text column.
        max_perplexity_samples: Use the first so many texts.
        geometry: Measure how a classifier's representations and logits separate the classes (silhouettes), and draw
            maps and confusion matrices in the report.
        task_metric: Metric of the task axis in the report; null picks by task.
        drift_metric: Metric of the drift axis in the report; null picks by task.
    """

    name: str = "run"
    output_dir: str | None = None
    method: str = "ba-lora"
    methods: list[str] = field(default_factory=lambda: ["lora", "pissa", "ba-lora"])
    baseline: str | None = None
    method_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    sweep: dict[str, list[Any]] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    task: str | None = None
    seed: int = 42
    seeds: list[int] = field(default_factory=lambda: [42])
    jobs: int = 1
    model_name_or_path: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    task_type: Literal["CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM"] | None = None
    world: WorldConfig | None = None
    glue_task: str | None = None
    glue_dir: str | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    train_file: str | None = None
    validation_file: str | None = None
    validation_share: float | None = None
    mismatched_split: str | None = None
    mismatched_file: str | None = None
    column_names: list[str] | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    prompt_template: str | None = None
    messages_column: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    class_ratio: list[float] | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    subset_seed: int | None = None
    max_length: int | None = None
    max_target_length: int | None = None
    r: int = 16
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: list[str] | str | None = "all-linear"
    modules_to_save: list[str] | None = None
    bottleneck_size: int = 16
    pissa_niter: int | None = None
    consistency_weight: float | None = None
    diversity_weight: float | None = None
    diversity_loss: Literal["covariance", "entropy"] | None = None
    spectral_weight: float | None = None
    temperature: float = 2.0
    consistency_direction: Literal["forward", "reverse"] = "forward"
    top_k: int = 20
    spectral_k: int | None = None
    clip_spectral_k: bool = True
    consistency_schedule: Schedule | None = None
    diversity_schedule: Schedule | None = None
    spectral_schedule: Schedule | None = None
    sample_rate: float = 1.0
    fused_lm_head: bool = True
    teacher_cache_mb: float = 512
    learning_rate: float = 2e-4
    loraplus_lr_ratio: float = 16.0
    num_train_epochs: float = 1.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "random"
    packing: bool = False
    per_device_eval_batch_size: int = 16
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    bf16: bool = False
    gradient_checkpointing: bool = False
    logging_steps: int = 10
    save_steps: int = 500
    training_arguments: dict[str, Any] = field(default_factory=dict)
    perplexity_file: str | None = None
    perplexity_column: str = "text"
    max_perplexity_samples: int | None = None
    geometry: bool = False
    task_metric: str | None = None
    drift_metric: str | None = None

    def __post_init__(self) -> None:
        own = [name for name, settings in self.method_settings.items() if "method" in settings]
        for key, names in (("method", [self.method]), ("methods", self.methods)):
            for method in names:
                known = [*RUN_METHODS, *RIVAL_METHODS, *(own if key == "methods" else ())]
                if method not in known:
                    raise BALoraError(f"{key}: unknown method {method!r}; there are {', '.join(known)}")
        for key in ("methods", "seeds"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise BALoraError(f"{key}: {values} must name at least one, and none twice")
        if self.baseline is not None and self.baseline not in self.methods:
            raise BALoraError(f"baseline: {self.baseline!r} is not among the methods {', '.join(self.methods)}")
        for key, names in (("methods", self.methods), ("tasks", self.tasks)):
            for name in names:
                if Path(name).name != name:
                    raise BALoraError(f"{key}: {name!r} names a folder too, so it must be without slashes")
        for key in COUNTS:
            if getattr(self, key) < 1:
                raise BALoraError(f"{key}: {getattr(self, key)} must be at least 1")
        if not self.learning_rate > 0:
            raise BALoraError(f"learning_rate: {self.learning_rate} must be positive")
        if self.glue_task is not None and self.glue_task not in GLUE:
            raise BALoraError(f"glue_task: unknown {self.glue_task!r}; there are {', '.join(GLUE)}")
        if self.validation_share is not None and not 0 < self.validation_share < 1:
            raise BALoraError(f"validation_share: {self.validation_share} is not a share; use one between 0 and 1")
        if self.packing and (self.is_classification or self.is_seq2seq):
            raise BALoraError(
                "packing: rows of a causal language model alone can be joined; use train_sampling_strategy: "
                "group_by_length"
            )
        if self.geometry and not self.is_classification and not self.tasks:
            raise BALoraError("geometry: classifiers alone have a representation of each class; leave it out")
        if self.perplexity_file is not None and (self.is_classification or self.is_seq2seq):
            raise BALoraError("perplexity_file: causal language models alone have a perplexity; leave it out")
        if self.packing and self.max_length is None:
            raise BALoraError("packing: rows are joined up to max_length, which is missing")
        for name, settings in self.tasks.items():
            _refuse_unknown(f"tasks: {name}", settings, Recipe, besides=OF_THE_STUDY)
        for name, settings in self.method_settings.items():
            _refuse_unknown(f"method_settings: {name}", settings, Recipe, besides=OF_THE_STUDY)
        _refuse_unknown("sweep", self.sweep, Recipe, besides=OF_THE_STUDY)
        for key, values in self.sweep.items():
            if not values or len({repr(value) for value in values}) < len(values):
                raise BALoraError(f"sweep: {key}: {values} must have at least one value, and none twice")
        if self.world is None and not self.tasks:
            self._require_model_and_data()

    def _require_model_and_data(self) -> None:
        if self.model_name_or_path is None:
            raise BALoraError("model_name_or_path: missing; give a Hub name or a folder (or `world: {}`)")
        if self.dataset_name is not None and self.train_file is not None:
            raise BALoraError("train_file, dataset_name: give one of the two")
        if self.dataset_name is None and self.train_file is None and self.glue_task is None:
            raise BALoraError("train_file, dataset_name: one of the two is missing (or glue_task)")

    @property
    def has_labels(self) -> bool:
        """Whether rows are texts with a class or a number."""
        return self.label_column is not None or self.glue_task is not None or self.task_type == "SEQ_CLS"

    @property
    def is_classification(self) -> bool:
        """Whether a model with a classification (or regression) head is trained."""
        return self.has_labels if self.task_type is None else self.task_type == "SEQ_CLS"

    @property
    def is_seq2seq(self) -> bool:
        """Whether a sequence-to-sequence model is trained, classes being text to it."""
        return self.task_type == "SEQ_2_SEQ_LM"

    def to_yaml(self) -> str:
        """Every setting, defaults included, as YAML."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The settings written in a recipe file, unknown keys refused.

    Raises:
        BALoraError: If the file is missing, is not YAML, or has a key no recipe has.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BALoraError(f"{path}: cannot read this recipe ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BALoraError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise BALoraError(f"{path}: a recipe is a mapping of settings, such as `learning_rate: 0.001`")
    _refuse_unknown(str(path), settings, Recipe)
    if isinstance(settings.get("world"), dict):
        _refuse_unknown(f"{path}: world", settings["world"], WorldConfig)
    return settings


def _refuse_unknown(where: str, settings: dict[str, Any], schema: type, *, besides: tuple[str, ...] = ()) -> None:
    names = [f.name for f in fields(schema) if f.name not in besides]
    for key in settings:
        if key in besides:
            raise BALoraError(f"{where}: {key!r} is a setting of the whole study; put it at the recipe's top level")
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise BALoraError(f"{where}: unknown key {key!r}{meant}")
