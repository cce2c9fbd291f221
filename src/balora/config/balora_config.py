"""`BALoraConfig`: PEFT's `LoraConfig` plus the method, by name, and the settings of its parts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from peft import LoraConfig, PeftConfig, TaskType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from transformers import BitsAndBytesConfig

from balora.config.initialization import INITIALIZATIONS, Initialization
from balora.config.methods import Method, check_method, find_method, method_name
from balora.config.published import ANCHOR_WEIGHT, PUBLISHED, SWAPPED_WORDS
from balora.config.quantization import four_bit_settings
from balora.config.ranges import Count, validate_types
from balora.config.regularizers import Regularizers
from balora.config.unused import USES, has_anchors, needs_of_method, unused_settings
from balora.errors import BALoraError

#: `peft_type` of a `BALoraConfig`. PEFT's own for LoRA would let `peft.get_peft_model` train plain LoRA instead.
BALORA_TYPE = "BALORA"
#: Initializations by PEFT's names for `LoraConfig.init_lora_weights`.
INITIALIZATIONS_OF_PEFT = {"pissa": "pissa", "olora": "olora", "corda": "corda", "lora_ga": "lora-ga"}


class DefaultTargets(str):
    """The default of `target_modules`, distinct from the same word given by a user, for methods with another one."""


ALL_LINEAR = DefaultTargets("all-linear")


class RefusingTuner:
    """PEFT's tuner for a `BALoraConfig`: raises an error that names balora's function."""

    uses_shared_state = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise BALoraError(
            "BALoraConfig: PEFT alone would train plain LoRA with it; use balora.get_balora_model(model, config) in "
            "place of PEFT's function, and balora.training.sft.BALoraSFTTrainer(peft_config=config) in place of "
            "TRL's SFTTrainer"
        )


PEFT_TYPE_TO_TUNER_MAPPING[BALORA_TYPE] = RefusingTuner


@dataclass
class BALoraConfig(Regularizers, Initialization, LoraConfig):
    """Configuration of a BA-LoRA model. Every field of PEFT's `LoraConfig` keeps its name and meaning.

    The experts of a mixture are one parameter in Transformers, which `target_parameters` names
    (`mlp.experts.gate_up_proj`); each expert gets factors of its own.

    Fields left at `None` take the value the paper prints for the model's task (`balora.config.PUBLISHED`), a weight
    that of the method. The fields of regularizers and initialization are described in `balora.config.regularizers` and
    `balora.config.initialization`, and are recipe keys of the same names.

    Raises:
        BALoraError: If a value is out of range, a name is unknown, the method does not use a weight, or two settings
            do not fit each other.
    """

    method: str = "ba-lora"
    """Name of the method, as in recipes (`balora.config.methods`): an initialization, and what is added to it.

    Initializations: `lora`, `rslora`, `dora`, or `lora-fa`, which is LoRA with A frozen; from part of the weight:
    `pissa` from its principal components, `milora` from its minor ones, `olora` from its QR decomposition; from
    batches that `get_balora_model` is given: `lora-ga` from the leading directions of the loss's gradient (settings in
    PEFT's `lora_ga_config`), `corda` from the weight's components as the layer's inputs weigh them, `lora-null` from
    the part of the weight that those inputs hardly use (`lora-null-v2` also freezes A). `oplora` starts as `lora` and
    leaves each weight's leading singular triplets as they are (`balora.adapters.oplora`). `selora` starts as `lora`,
    and each row's sentence embedding gates it, in every attention projection unless `target_modules` is given
    (`balora.adapters.selora`). `qlora`, `qdora` and `qpissa` have a base in 4 bits, and `lora+` has LoRA+'s optimizer
    in balora's trainers.

    `+reg` adds consistency, diversity and spectral term at their published weights; `ba-lora` is `pissa+reg`,
    `qba-lora` the same in 4 bits. `+anchors` adds self-anchors at weight 1, and `+swaps` averages the teacher over
    exchanges of the words of gender; `get_balora_model` needs the tokenizer for them. `anchor_weight`,
    `anchor_share` and `counterfactual_words` set these otherwise."""
    target_modules: list[str] | str | None = ALL_LINEAR
    """Module names or a pattern as in PEFT, or `all-linear`; by default `all-linear`, with `selora` every attention
    projection; `None` for PEFT's default for the model."""
    seed: int = 0
    """Seed of the randomized SVD (PiSSA's, LoRA-GA's) and of dropout while LoRA-GA's gradient is taken."""
    quantization_config: BitsAndBytesConfig | dict[str, Any] | None = None
    """Transformers' `BitsAndBytesConfig` with `load_in_4bit`, or its settings as a dict (which it becomes): for a base
    that was loaded in full precision, whose linear layers are quantized once a residual method has taken its part
    (QPiSSA). The teacher is then the function that the student starts from: the pretrained one up to the residual's
    rounding. A base that Transformers loaded in 4 bits needs no such setting, and is its own teacher."""
    sentence_dim: Count | None = None
    """For `selora`, the length of the sentence embeddings, `sentence_embeds`, that forward and `generate` are
    given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BALORA_TYPE
        check_method(self.method)
        if self.gated and self.sentence_dim is None:
            raise BALoraError(
                "sentence_dim: missing; selora needs the length of the sentence embeddings that it will be given "
                "(all-MiniLM-L6-v2's is 384)"
            )
        validate_types(self)
        self._check_weights()
        self._check_lora()
        self._check_task_adapters()
        self._check_row_inputs()
        if self.quantization_config is not None:
            self.quantization_config = four_bit_settings(self.quantization_config)

    @property
    def described(self) -> Method:
        """Return the parts of the method that its name describes."""
        return find_method(self.method)

    @property
    def initialization(self) -> str:
        """Return the name of the adapter's initialization: `pissa` of `ba-lora`."""
        return self.described.initialization

    @property
    def residual(self) -> bool:
        """Return whether the base weight loses what the adapter starts from."""
        return self.described.residual

    @property
    def gated(self) -> bool:
        """Return whether sentence embeddings gate the adapter."""
        return self.described.gated

    def resolve(self, task_type: str) -> None:
        """Fill fields left at `None` with the published value for the task, in place.

        Raises:
            BALoraError: If the settings do not fit the task, one has no effect, or the task has no regularizers.
        """
        self._check_task(task_type)
        self._refuse(self.unused(task_type))
        self._fill(task_type)
        if self.described.swapped and unused_settings(self, ["counterfactual_words"]):
            raise BALoraError(
                f"method: {self.method} has no term left that reads the teacher, which +swaps changes; set "
                "consistency_weight or anchor_weight above 0"
            )

    def unused(self, task_type: str) -> dict[str, str]:
        """Return the settings that were set and have no effect for the task, each with what it needs.

        A configuration that was resolved before has none: published values are not the user's.
        """
        if all(getattr(self, name) is not None for name in PUBLISHED[task_type]):
            return {}
        # A constant schedule asks for nothing that a term at weight 0 lacks.
        given = [
            f.name for f in fields(self) if f.name in USES and getattr(self, f.name) not in (f.default, "constant")
        ]
        resolved = replace(self)
        resolved._fill(task_type)
        return unused_settings(resolved, given)

    def _fill(self, task_type: str) -> None:
        self.task_type = task_type
        method = self.described
        if self.semantic_weight is None:
            self.semantic_weight = 0.5 if method.gated else 0.0
        if self.anchor_weight is None:
            self.anchor_weight = ANCHOR_WEIGHT if method.anchored else 0.0
        if self.counterfactual_words is None and method.swapped:
            self.counterfactual_words = SWAPPED_WORDS
        for name, value in PUBLISHED[task_type].items():
            if getattr(self, name) is None:
                setattr(self, name, 0.0 if name.endswith("_weight") and not method.regularized else value)

    def lora_config(self) -> LoraConfig:
        """Return the plain PEFT configuration of the trained adapter."""
        settings = {f.name: getattr(self, f.name) for f in fields(LoraConfig) if f.init}
        # PEFT writes into these where it finds a mixture of experts.
        settings |= {name: dict(settings[name]) for name in ("rank_pattern", "alpha_pattern")}
        return LoraConfig(**{**settings, **INITIALIZATIONS[self.initialization]})

    def settings(self) -> dict[str, Any]:
        """Return balora's own fields as JSON types: the content of `balora_config.json`."""
        inherited = {f.name for f in fields(LoraConfig)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in inherited}

    def _check_weights(self) -> None:
        """Validate the weights that the method has no use for; 0 is always right."""
        needs = needs_of_method(self.described, [f.name for f in fields(self)])
        self._refuse({name: need for name, need in needs.items() if getattr(self, name)})

    def _refuse(self, unused: dict[str, str]) -> None:
        for name, needs in unused.items():
            raise BALoraError(
                f"{name}: {getattr(self, name)!r} has no effect with method {self.method}: it needs {needs}; leave it "
                "out"
            )

    def _check_lora(self) -> None:
        if self.r < 1:
            raise BALoraError(f"r: {self.r} is out of range; use at least 1")
        if not isinstance(self.init_lora_weights, bool):
            raise BALoraError(
                f"init_lora_weights: {self.init_lora_weights!r} is set by `method`; use one of "
                f"{', '.join(INITIALIZATIONS)} there, or leave it out"
            )
        if self.bias != "none":
            raise BALoraError(
                f"bias: {self.bias!r} trains the base's own biases, after which the pretrained model can no longer be "
                "recovered by disabling the adapter; use 'none', or lora_bias=True for biases inside the adapter"
            )

    def _check_task_adapters(self) -> None:
        if self.task_names is None:
            if self.alignment_weight:
                raise BALoraError(
                    "alignment_weight: a single adapter has nothing to align with; name the tasks in task_names, or "
                    "use 0"
                )
            return
        check_task_names(self.task_names)
        if len(self.task_names) < 2:
            raise BALoraError(f"task_names: {self.task_names}; give at least two different names")
        if {"default", "teacher"} & set(self.task_names):
            raise BALoraError(
                "task_names: 'default' and 'teacher' are balora's own names for adapters; use another name"
            )
        if self.initialization not in ("lora", "rslora"):
            raise BALoraError(
                f"method: {self.method} has one adapter for all rows, and task_names one for each task; use lora or "
                "rslora"
            )
        for name in ("use_dora", "lora_bias", "modules_to_save", "target_parameters"):
            if getattr(self, name):
                raise BALoraError(
                    f"{name}: not supported with task_names, whose adapters are plain LoRA; leave it out"
                )

    def _check_row_inputs(self) -> None:
        """Validate the terms that cannot handle inputs of each row's own: sentence embeddings and task ids."""
        own = "a sentence embedding" if self.gated else "a task" if self.task_names else None
        if own is not None and self.bias_path_weight and self.bias_path_sample_rate < 1:
            raise BALoraError(
                f"bias_path_sample_rate: {self.bias_path_sample_rate} would leave rows out, but the layers hold {own} "
                "for every row of the batch; use 1.0"
            )
        if own is not None and has_anchors(self):
            raise BALoraError(f"anchor_weight: each row needs {own}, which anchors do not have; use 0")
        if own is not None and self.replay_weight:
            raise BALoraError(f"replay_weight: each row needs {own}, which replayed texts do not have; use 0")

    def _check_task(self, task_type: str) -> None:
        if task_type not in PUBLISHED:
            raise BALoraError(f"task_type: {task_type!r} is not supported; there are {', '.join(map(str, PUBLISHED))}")
        if task_type == TaskType.SEQ_2_SEQ_LM and (self.counterfactual_words is not None or self.described.swapped):
            raise BALoraError("counterfactual_words: only for causal language models and classifiers; leave it out")
        if has_anchors(self) and task_type != TaskType.CAUSAL_LM:
            raise BALoraError("anchor_weight: only causal language models can generate anchors; use 0")
        for name in ("replay_weight", "ewc_weight"):
            if getattr(self, name) and task_type != TaskType.CAUSAL_LM:
                raise BALoraError(f"{name}: only for causal language models, which predict the words of a text; use 0")
        if task_type == TaskType.SEQ_CLS and self.task_names:
            raise BALoraError(
                "task_names: in classification each task would need a head of its own; use a model that generates its "
                "answers"
            )
        if task_type != TaskType.SEQ_CLS and self.diversity_loss == "covariance":
            raise BALoraError(
                "diversity_loss: a covariance of next-token logits would be vocabulary × vocabulary; use 'entropy'"
            )
        if task_type == TaskType.SEQ_CLS and self.sample_rate != 1:
            raise BALoraError(
                f"sample_rate: {self.sample_rate} is for generation; in classification the teacher sees each example "
                "once anyway (teacher_cache_mb)"
            )


def as_balora_config(config: PeftConfig) -> BALoraConfig:
    """Return a configuration as a `BALoraConfig`; PEFT's `LoraConfig` gets the published regularizers.

    A `LoraConfig` becomes the method that it describes, with `+reg`: `dora`, `rslora`, or `pissa`, `olora`, `corda`
    or `lora-ga` by its `init_lora_weights`, else `lora`.

    Raises:
        BALoraError: If it is a configuration of something else.
    """
    if isinstance(config, BALoraConfig):
        return config
    if type(config) is not LoraConfig:
        raise BALoraError(
            f"config: {type(config).__name__} does not describe LoRA; use BALoraConfig or peft.LoraConfig"
        )
    settings = {f.name: getattr(config, f.name) for f in fields(LoraConfig) if f.init}
    start, niter = config.init_lora_weights, None
    if isinstance(start, str) and start.startswith("pissa_niter_"):
        start, niter = "pissa", int(start.removeprefix("pissa_niter_"))
    initialization = "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"
    if start in INITIALIZATIONS_OF_PEFT:
        initialization, settings["init_lora_weights"] = INITIALIZATIONS_OF_PEFT[start], True
    if initialization == "corda" and config.corda_config is not None:
        settings["corda_method"] = config.corda_config.corda_method
    method = Method(initialization, regularized=True)
    return BALoraConfig(**settings, method=method_name(method), pissa_niter=niter)


def check_task_names(names: Sequence[str]) -> None:
    """Validate names of tasks, which are names of folders too.

    Raises:
        BALoraError: If one is not such a name, or two are equal.
    """
    right = isinstance(names, list) and all(isinstance(one, str) and re.fullmatch(r"\w[\w-]*", one) for one in names)
    if not right or len(set(names)) < len(names):
        raise BALoraError(
            f"task_names: {str(names)[:200]}; give at least two different names of letters, digits, _ and -, which "
            "their folders will have"
        )
