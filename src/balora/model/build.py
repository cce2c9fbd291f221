"""Build a `BALoraModel` from a pretrained model and a configuration, and recognize a model's task."""

import warnings
from collections.abc import Iterable
from dataclasses import replace

from peft import PeftConfig, TaskType
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto as auto

from balora.adapters import four_bit, model_checks, targets
from balora.adapters.assembly import assemble
from balora.adapters.data_initialization import initialize_from_inputs, initialize_lora_ga
from balora.adapters.initialization import initialize_residual
from balora.adapters.new_modules import with_heads
from balora.adapters.teacher import STUDENT, attach_teacher, lora_layers
from balora.anchors import Anchors, cached_anchors
from balora.config import BALoraConfig, as_balora_config, four_bit_settings
from balora.config.balora_config import DefaultTargets
from balora.config.quantization import QLORA
from balora.config.unused import reads_own_texts
from balora.counterfactual import Swaps, read_word_groups
from balora.errors import BALoraError
from balora.model.base import MODEL_CLASSES, BALoraModel
from balora.model.regularizers import regularizes_logits


def get_balora_model(
    model: PreTrainedModel,
    config: PeftConfig,
    start_batches: Iterable[dict[str, Tensor]] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    anchors: Anchors | None = None,
) -> BALoraModel:
    """Add an adapter to a pretrained model, as `peft.get_peft_model` does, with a teacher and an objective.

    Args:
        model: A causal or sequence-to-sequence language model or a sequence classifier; changed in place. It may be
            loaded in 4 bits, except for a residual method, which needs full precision and quantizes the residual
            (`BALoraConfig.quantization_config`).
        config: A `BALoraConfig`, or PEFT's `LoraConfig`, which gets the published regularizers. Not changed; the model
            keeps a copy with the task type and the published values filled in.
        start_batches: Model inputs that `lora-ga`, `corda` and `lora-null` initialize from, read once; other methods
            read none. On several processes each must get the same ones.
        tokenizer: The model's tokenizer, with which self-anchors are sampled, unless given, and the words are found
            that the counterfactual teacher exchanges; other methods do not use it.
        anchors: Self-anchors of your own, instead of those that the model writes now (`balora.anchors`); also the
            texts of `replay_weight`.

    Raises:
        BALoraError: If the model has an adapter already, its task is not supported, a target module matches nothing,
            the method's batches or its tokenizer are missing, or a weight that has to be split is quantized.
    """
    model_checks.check_unadapted(model)
    config = as_balora_config(config)
    if config.described.from_data and start_batches is None:
        raise BALoraError(
            f"start_batches: {config.method} initializes from data; give get_balora_model some batches of model inputs"
        )
    config = replace(config)
    config.resolve(config.task_type or task_of(model))
    _check_tokenizer(config, tokenizer, anchors)
    if config.task_type == TaskType.SEQ_CLS:
        _warn_of_constant_terms(model, config)
        config.modules_to_save = with_heads(model, config.modules_to_save)
    if config.gated and (config.target_modules is None or isinstance(config.target_modules, DefaultTargets)):
        config.target_modules = targets.attention_projections(model)
    if config.described.four_bit and not getattr(model, "is_quantized", False):
        config.quantization_config = config.quantization_config or four_bit_settings(QLORA)
    targets.narrow_all_linear(model, config)
    targets.check_called_layers(model, config)
    targets.check_not_in_full(model, config)
    in_four_bits = four_bit.layers_to_quantize(model, config)
    if reads_own_texts(config) and anchors is None and tokenizer is not None:
        targets.check_targets(model, config.lora_config())
        anchors = cached_anchors(lambda: model, tokenizer)
    adapted = assemble(MODEL_CLASSES, model, config)
    try:
        model_checks.check_shared_weights(adapted, embeddings_only=not config.residual)
        if config.residual:
            _initialize(adapted, config, start_batches)
    except BALoraError:
        adapted.base_model.unload()  # the base is as it was given, for a call with other settings
        raise
    if config.residual:
        attach_teacher(adapted)
    four_bit.quantize(adapted, in_four_bits)
    set_texts(adapted, tokenizer, anchors)
    return adapted


def set_texts(model: BALoraModel, tokenizer: PreTrainedTokenizerBase | None, anchors: Anchors | None) -> None:
    """Set what is not saved with a model: its anchors, and the words that its teacher is averaged over.

    Args:
        model: A built or loaded model.
        tokenizer: Its tokenizer; `None` leaves the words unset.
        anchors: Its anchors; `None` leaves them unset.
    """
    config = model.balora_config
    if reads_own_texts(config) and anchors is not None:
        model.set_anchors(anchors)
    if config.counterfactual_words is not None and tokenizer is not None:
        model.set_swaps(Swaps(read_word_groups(config.counterfactual_words), tokenizer))


def _check_tokenizer(config: BALoraConfig, tokenizer: PreTrainedTokenizerBase | None, anchors: Anchors | None) -> None:
    """Check that a method with anchors or swaps in its name is given what they are made with.

    With a setting instead of the name, `set_anchors` and `set_swaps` may be called before training.
    """
    if tokenizer is not None:
        return
    if config.described.anchored and config.anchor_weight and anchors is None:
        raise BALoraError(
            f"method: {config.method} samples texts from the model, for which it needs the tokenizer; give "
            "get_balora_model tokenizer=…, or anchors=… of your own"
        )
    if config.described.swapped:
        raise BALoraError(
            f"method: {config.method} exchanges words, for which it needs the tokenizer; give get_balora_model "
            "tokenizer=…"
        )


def _initialize(adapted: BALoraModel, config: BALoraConfig, start_batches: Iterable[dict[str, Tensor]] | None) -> None:
    """Initialize the adapter of a residual method; the base keeps its weights."""
    model_checks.check_weights_present(lora_layers(adapted), config.method)
    if config.initialization == "lora-ga":
        initialize_lora_ga(adapted, start_batches, settings=config.lora_ga_config, seed=config.seed)
    elif config.described.from_inputs:
        initialize_from_inputs(adapted, start_batches, config.initialization, corda_method=config.corda_method)
    else:
        layers, start = lora_layers(adapted), config.initialization
        initialize_residual(layers, STUDENT, start, niter=config.pissa_niter, seed=config.seed)


def _warn_of_constant_terms(model: PreTrainedModel, config: BALoraConfig) -> None:
    classes = model.config.num_labels
    if model.config.problem_type == "multi_label_classification" and regularizes_logits(config):
        raise BALoraError(
            "problem_type: the regularizers compare softmax distributions over classes, which multi-label outputs do "
            "not give; set consistency_weight, diversity_weight and spectral_weight to 0"
        )
    if classes == 1 and regularizes_logits(config):
        warnings.warn(
            "balora: with one output the regularizers are constants; consistency is the squared error to the "
            "teacher's score instead, diversity and spectral are off"
        )
    elif config.spectral_weight and config.spectral_k >= classes > 1:
        done = f"k = {classes - 1} is used" if config.clip_spectral_k else "clip_spectral_k=True would use a smaller k"
        warnings.warn(
            f"balora: spectral_k = {config.spectral_k} with {classes} classes makes the spectral term −1 whatever the "
            f"logits; {done}"
        )


_CLASSES = {
    TaskType.CAUSAL_LM: auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    TaskType.SEQ_2_SEQ_LM: auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    TaskType.SEQ_CLS: auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}


def task_of(model: PreTrainedModel) -> TaskType:
    """Return the PEFT task type of a Transformers model, by its class.

    Raises:
        BALoraError: If neither the class nor a class that it derives from belongs to a supported task.
    """
    ancestry = {cls.__name__ for cls in type(model).__mro__}
    for task_type, names in _CLASSES.items():
        if task_type == TaskType.SEQ_2_SEQ_LM and not model.config.is_encoder_decoder:
            continue  # Transformers lists audio decoders (Qwen2-Audio) there too
        if ancestry & {name for entry in names.values() for name in ([entry] if isinstance(entry, str) else entry)}:
            return task_type
    raise BALoraError(
        f"{type(model).__name__} is neither a causal language model nor a sequence classifier nor a sequence-to-"
        "sequence model; load it with AutoModelForCausalLM, AutoModelForSeq2SeqLM or "
        "AutoModelForSequenceClassification, or name task_type in the configuration"
    )
