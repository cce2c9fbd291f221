"""The kind of model that is audited, from configurations alone, since weights are loaded after files are read."""

from pathlib import Path

from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from balora.adapters.loading import read_peft_settings
from balora.adapters.saving import PEFT_FILE, SELORA_TYPE, SETTINGS_FILE
from balora.errors import BALoraError
from balora.evaluation.benchmarks import CAUSAL, CLASSIFIER, MASKED
from balora.utils.loading import LOAD_ERRORS, first_line, load

#: Kinds by the end of an architecture's name.
KINDS = {
    "ForCausalLM": CAUSAL,
    "LMHeadModel": CAUSAL,
    "ForSequenceClassification": CLASSIFIER,
    "ForMaskedLM": MASKED,
}
#: Kinds by an adapter's task type, which overrides the architecture.
TASKS = {"CAUSAL_LM": CAUSAL, "SEQ_CLS": CLASSIFIER}
OTHER_TASKS = ("SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS")
CLASSES = {
    CAUSAL: AutoModelForCausalLM,
    CLASSIFIER: AutoModelForSequenceClassification,
    MASKED: AutoModelForMaskedLM,
}
DTYPES = ("auto", "float32", "bfloat16", "float16")


def kind_of(model: str, adapter: str | None) -> str:
    """Return the kind of model, one of `KINDS`' values.

    Raises:
        BALoraError: If a configuration does not load, or that kind cannot be audited.
    """
    config, peft_config = configs_of(model, adapter)
    task = None if peft_config is None else peft_config.task_type
    named = config.architectures if isinstance(config.architectures, list) else []
    architecture = str(next(iter(named), ""))
    kind = TASKS.get(task) or next((kind for end, kind in KINDS.items() if architecture.endswith(end)), None)
    if kind is None and MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type) == architecture:
        kind = CAUSAL  # a vision class that is loaded as a language model, such as Gemma 3's
    if kind is None or task in OTHER_TASKS:
        setting = "adapter" if task in OTHER_TASKS else "model" if peft_config or adapter is None else "adapter"
        what = task if task in OTHER_TASKS else architecture or "an architecture without a name"
        raise BALoraError(
            f"{setting}: {what} cannot be audited; "
            "causal language models, sequence classifiers and masked language models can"
        )
    if kind == CLASSIFIER:
        _check_classes(config, len(label_names_of(model, adapter)))
    return kind


def label_names_of(model: str, adapter: str | None) -> list[str]:
    """Return a classifier's classes by id: as its configuration names them, or `0`, `1` … of an adapter's head.

    Raises:
        BALoraError: If a configuration does not load.
    """
    config, peft_config = configs_of(model, adapter)
    count = config.num_labels if peft_config is None else _rows_of_head(adapter) or config.num_labels
    if count == config.num_labels:
        return [config.id2label[i] for i in range(count)]
    return [str(i) for i in range(count)]


def configs_of(model: str, adapter: str | None) -> tuple[PreTrainedConfig, PeftConfig | None]:
    """Return the tuned model's configuration, and that of the adapter if there is one.

    Raises:
        BALoraError: If one does not load, or what is called an adapter is neither that nor a model.
    """
    if adapter is None:
        return load(AutoConfig, model, "model"), None
    folder = Path(adapter)
    if (folder / PEFT_FILE).is_file():
        return load(AutoConfig, model, "model"), _peft_config(adapter)
    if (folder / "config.json").is_file():
        return load(AutoConfig, adapter, "adapter"), None
    tasks = sorted(path.parent.name for path in folder.glob(f"*/{PEFT_FILE}"))
    if (folder / SETTINGS_FILE).is_file() and tasks:
        raise BALoraError(
            f"adapter: {adapter} holds an adapter for each of several tasks; name one, such as {folder / tasks[0]}"
        )
    raise BALoraError(f"adapter: {adapter} is neither a saved adapter ({PEFT_FILE}) nor a saved model (config.json)")


def _check_classes(config: PreTrainedConfig, count: int) -> None:
    if count < 2:
        raise BALoraError("model: a regression, of one output, cannot be audited; a classifier of two classes or more")
    if config.problem_type == "multi_label_classification":
        raise BALoraError("model: a classifier of several labels at once cannot be audited; one of a class a row can")


def _peft_config(adapter: str) -> PeftConfig:
    try:
        saved = read_peft_settings(adapter)
    except BALoraError as error:
        raise BALoraError(f"adapter: {error}") from error
    if saved.get("peft_type") == SELORA_TYPE:
        raise BALoraError(
            f"adapter: {adapter} is SeLoRA's, another weight for each sentence; make it a plain LoRA first, "
            "`model = BALoraModel.from_pretrained(base, adapter); model.merge_at(sentence_embeds)`, with those of "
            "typical sentences for their mean gate, and audit what model.save_pretrained writes"
        )
    try:
        return PeftConfig.from_pretrained(adapter)
    except LOAD_ERRORS as error:
        raise BALoraError(f"adapter: {adapter!r} does not load with PeftConfig: {first_line(error)}") from error


def _rows_of_head(adapter: str) -> int:
    """Return the number of classes of an adapter's head, the fewest rows of its layers; 0 if it has no head."""
    file = Path(adapter) / "adapter_model.safetensors"
    if not file.is_file():
        raise BALoraError(f"adapter: {adapter} has no adapter_model.safetensors; save it with safetensors")
    try:
        with safe_open(file, "pt") as tensors:
            rows = [
                tensors.get_slice(name).get_shape()[0]
                for name in tensors.keys()  # noqa: SIM118 - no mapping
                if "lora_" not in name and name.endswith(".weight") and ("classifier" in name or "score" in name)
            ]
    except (OSError, SafetensorError, IndexError) as error:
        raise BALoraError(f"adapter: {adapter}'s weights cannot be read: {first_line(error)}") from error
    return min(rows, default=0)
