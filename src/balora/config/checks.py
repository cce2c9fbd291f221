"""What is wrong with a `BALoraConfig`, said before anything is built: one sentence that names the setting."""

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from peft import TaskType
from transformers import BitsAndBytesConfig

from balora.config.presets import METHODS, PUBLISHED, SELORA
from balora.errors import BALoraError

if TYPE_CHECKING:
    from balora.config import BALoraConfig

INFINITY = float("inf")


def check_config(config: "BALoraConfig") -> None:
    """See that every setting is in range and fits the others, whatever the model.

    Raises:
        BALoraError: If one does not.
    """
    _check_names(config)
    _check_numbers(config)
    _check_lora(config)
    _check_selora(config)
    _check_bias_path(config)
    _check_tasks(config)
    _check_anchors(config)


def _check_names(config: "BALoraConfig") -> None:
    if config.method not in METHODS:
        raise BALoraError(f"method: unknown {config.method!r}; there are {', '.join(METHODS)}")
    if config.corda_method not in ("ipm", "kpm"):
        raise BALoraError(f"corda_method: unknown {config.corda_method!r}; use 'ipm' or 'kpm'")
    if config.gate not in ("shared", "per_layer"):
        raise BALoraError(f"gate: unknown {config.gate!r}; use 'shared' or 'per_layer'")
    for name in ("semantic_reduction", "bias_path_reduction"):
        if getattr(config, name) not in ("mean", "sum"):
            raise BALoraError(f"{name}: unknown {getattr(config, name)!r}; use 'mean' or 'sum'")
    if config.consistency_direction not in ("forward", "reverse"):
        raise BALoraError(f"consistency_direction: {config.consistency_direction!r}; use 'forward' or 'reverse'")
    if config.diversity_loss not in (None, "covariance", "entropy"):
        raise BALoraError(f"diversity_loss: unknown {config.diversity_loss!r}; use covariance or entropy")
    if config.bias_path_mode not in ("adversarial", "minimised", "counterfactual"):
        raise BALoraError(
            f"bias_path_mode: unknown {config.bias_path_mode!r}; use adversarial, minimised or counterfactual"
        )
    for name in (field.name for field in fields(config) if field.name.endswith("_schedule")):
        if getattr(config, name) not in (None, "constant", "cosine", "two_phase"):
            raise BALoraError(f"{name}: unknown {getattr(config, name)!r}; use constant, cosine or two_phase")


def _check_numbers(config: "BALoraConfig") -> None:
    for name in (field.name for field in fields(config) if field.name.endswith("_weight")):
        value = getattr(config, name)
        if value is not None and not 0 <= value < INFINITY:
            raise BALoraError(f"{name}: {value} is not a weight; use 0 (off) or a positive number")
    for name in ("top_k", "spectral_k", "r", "sentence_dim", "gate_hidden"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise BALoraError(f"{name}: {value} is too small; use at least 1")
    if config.pissa_niter is not None and config.pissa_niter < 0:
        raise BALoraError(f"pissa_niter: {config.pissa_niter} is negative; use null for the exact SVD, or 0, 1, 2 …")
    if not config.temperature > 0:
        raise BALoraError(f"temperature: {config.temperature} is not positive")
    if not config.teacher_cache_mb >= 0:
        raise BALoraError(f"teacher_cache_mb: {config.teacher_cache_mb} is negative; use 0 for no cache")
    for name in ("sample_rate", "bias_path_sample_rate"):
        value = getattr(config, name)
        if not 0 < value <= 1:
            raise BALoraError(f"{name}: {value} is not a share; use a number above 0 and at most 1")
    if not 0 < config.anchor_share < INFINITY:
        raise BALoraError(f"anchor_share: {config.anchor_share} is not positive; use a number such as 0.5")
    if config.semantic_min_similarity is not None and not -1 <= config.semantic_min_similarity <= 1:
        raise BALoraError(f"semantic_min_similarity: {config.semantic_min_similarity} is no cosine; use −1 to 1")
    if not 0 < config.bias_path_radius < INFINITY:
        raise BALoraError(
            f"bias_path_radius: {config.bias_path_radius} is not a length; use a positive share of the embeddings' "
            "own, such as 0.1"
        )


def _check_lora(config: "BALoraConfig") -> None:
    if not isinstance(config.init_lora_weights, bool):
        raise BALoraError(
            f"init_lora_weights: {config.init_lora_weights!r} is set by `method`; use one of "
            f"{', '.join(METHODS)} there, or leave it out"
        )
    if config.bias != "none":
        raise BALoraError(
            f"bias: {config.bias!r} trains the base's own biases, after which the pretrained model can no longer be "
            "seen through the adapter; use 'none', or lora_bias=True for biases inside the adapter"
        )


def _check_selora(config: "BALoraConfig") -> None:
    if config.method == SELORA and config.sentence_dim is None:
        raise BALoraError(
            "sentence_dim: selora needs the length of the sentence vectors that it will be given; "
            "all-MiniLM-L6-v2's is 384"
        )
    if config.semantic_weight and config.method != SELORA:
        raise BALoraError(f"semantic_weight: {config.method} has no sentence vectors to weigh; use method='selora'")


def _check_bias_path(config: "BALoraConfig") -> None:
    if config.bias_path_weight and config.bias_path_sample_rate < 1 and config.method == SELORA:
        raise BALoraError(
            f"bias_path_sample_rate: {config.bias_path_sample_rate} leaves rows out, and selora's layers hold one "
            "gate for each row of the batch; use 1.0"
        )


def _check_tasks(config: "BALoraConfig") -> None:
    if config.task_names is None:
        if config.alignment_weight:
            raise BALoraError(
                "alignment_weight: there is but one adapter to align; name the tasks in task_names, or use 0"
            )
        return
    names = list(config.task_names)
    check_task_names(names)
    if len(names) < 2:
        raise BALoraError(f"task_names: {names}; give at least two different names")
    if {"default", "teacher"} & set(names):
        raise BALoraError(
            "task_names: 'default' is balora's own name for an adapter, as 'teacher' is; take another name"
        )
    if config.method not in ("lora", "rslora"):
        raise BALoraError(
            f"method: {config.method} has one adapter for all rows, and task_names one for each task; use lora "
            "or rslora"
        )
    for name in ("use_dora", "lora_bias", "modules_to_save", "target_parameters"):
        if getattr(config, name):
            raise BALoraError(
                f"{name}: task_names has plain LoRA on linear layers, and nothing beside it; leave it out"
            )
    if config.bias_path_weight and config.bias_path_sample_rate < 1:
        raise BALoraError(
            f"bias_path_sample_rate: {config.bias_path_sample_rate} leaves rows out, and the layers of task_names "
            "know those of the whole batch; use 1.0"
        )


def check_task_names(names: Any) -> None:
    """See that names of tasks can be those of folders.

    Raises:
        BALoraError: If they cannot.
    """
    right = isinstance(names, list) and all(isinstance(one, str) and re.fullmatch(r"\w[\w-]*", one) for one in names)
    if not right or len(set(names)) < len(names):
        raise BALoraError(
            f"task_names: {str(names)[:200]}; give at least two different names of letters, digits, _ and -, which "
            "their folders will have"
        )


def _check_anchors(config: "BALoraConfig") -> None:
    if config.anchor_weight and (config.method == SELORA or config.task_names):
        own = "a sentence vector" if config.method == SELORA else "a task"
        raise BALoraError(f"anchor_weight: each row has {own} of its own here, and anchors have none; use 0")


def check_task(config: "BALoraConfig", task_type: str) -> None:
    """See that the settings fit the model's task.

    Raises:
        BALoraError: If they do not, or the task has no regularizers defined.
    """
    if task_type not in PUBLISHED:
        raise BALoraError(f"task_type: {task_type!r} is not supported; there are {', '.join(map(str, PUBLISHED))}")
    if config.counterfactual_words is not None and task_type == TaskType.SEQ_2_SEQ_LM:
        raise BALoraError("counterfactual_words: causal language models and classifiers alone; leave it out")
    if config.anchor_weight and task_type != TaskType.CAUSAL_LM:
        raise BALoraError("anchor_weight: causal language models alone write texts unasked; use 0")
    if task_type == TaskType.SEQ_CLS and config.task_names:
        raise BALoraError(
            "task_names: in classification each task would have a head of its own; use a model that writes its answers"
        )
    if task_type != TaskType.SEQ_CLS and config.diversity_loss == "covariance":
        raise BALoraError(
            "diversity_loss: a covariance of next-token logits would be vocabulary × vocabulary; use 'entropy'"
        )
    if task_type == TaskType.SEQ_CLS and config.sample_rate != 1:
        raise BALoraError(
            f"sample_rate: {config.sample_rate} is for generation; in classification the teacher sees each example "
            "once anyway (teacher_cache_mb)"
        )


def four_bit_settings(config: BitsAndBytesConfig | dict[str, Any]) -> dict[str, Any]:
    """All settings of a `BitsAndBytesConfig`, as JSON types.

    Raises:
        BALoraError: If one is unknown or has a wrong value, or they ask for other than 4 bits.
    """
    known = [name for name in BitsAndBytesConfig().to_dict() if not name.startswith("_")]
    if isinstance(config, dict):
        unknown = sorted(set(config) - set(known))
        if unknown:
            raise BALoraError(f"quantization_config: unknown {unknown[0]!r}; there are {', '.join(known)}")
        try:
            config = BitsAndBytesConfig(**config)
        except (TypeError, ValueError, AttributeError) as error:
            raise BALoraError(f"quantization_config: {error}") from error
    if config.quantization_method() not in ("nf4", "fp4"):
        raise BALoraError(
            "quantization_config: only 4 bits are supported; use load_in_4bit=True and bnb_4bit_quant_type 'nf4' or "
            "'fp4'"
        )
    return {name: value for name, value in config.to_dict().items() if name in known}
