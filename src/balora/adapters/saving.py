"""Saved format of an adapter: a plain LoRA that stock PEFT loads, complete enough to resume training.

A residual adapter changes the weight by scaling·(B·A − B₀·A₀). It is saved as one LoRA of rank 2r:

    A' = [A; A₀]   B' = [B, −B₀]   the same scaling,

(expert by expert, if one A and one B hold those of several experts). It fits the original base weights, and both
halves can be restored exactly to resume.

SeLoRA is not a plain LoRA. Its files are written so that stock PEFT raises an error instead of ignoring the gates:
`adapter_config.json` names a type that PEFT does not know, and each `lora_A` has an extra axis, which raises an error
even if a configuration is passed explicitly.
"""

import json
import math
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig, PeftModel
from torch import Tensor

from balora.adapters.loading import PEFT_FILE, read_json, read_peft_settings
from balora.adapters.matrices import expert_count
from balora.adapters.teacher import lora_layers
from balora.config import BALoraConfig, find_method
from balora.config.methods import method_name
from balora.config.unused import needs_of_method
from balora.errors import BALoraError
from balora.utils.loading import LOAD_ERRORS, first_line

SETTINGS_FILE = "balora_config.json"
#: SeLoRA's `peft_type`; PEFT's `KeyError` prints it.
SELORA_TYPE = "SELORA (load it with balora.BALoraModel.from_pretrained)"
GATE_PREFIX = "lora_gate."
#: End of the key under which PEFT saves the base weight of an adapted head.
BASE_WEIGHT = ".base_layer.weight"


def experts_by_key(model: PeftModel) -> dict[str, int]:
    """Return the number of experts in each A of the state dict, by key; only those with more than one."""
    counts = {name: expert_count(layer) for name, layer in lora_layers(model).items()}
    return {f"base_model.model.{name}.lora_A.weight": count for name, count in counts.items() if count > 1}


def stack_factors(
    student: dict[str, Tensor], teacher: dict[str, Tensor], experts: dict[str, int]
) -> dict[str, Tensor]:
    """Combine the student's and the teacher's state dicts into one of rank 2r.

    Args:
        student: The student's state dict, with PEFT's keys.
        teacher: The teacher's, with the same keys.
        experts: From `experts_by_key`.
    """
    stacked = dict(student)
    for key, start in teacher.items():
        if "lora_A" in key:
            apart = (experts.get(key, 1), -1, start.shape[1])  # (E, r, in)
            stacked[key] = torch.cat([student[key].view(apart), start.view(apart)], dim=1).flatten(0, 1)  # (E·2r, in)
        elif "lora_B" in key and key.endswith("weight"):
            stacked[key] = torch.cat([student[key], -start], dim=1)  # (out, 2r·E), expert index fastest
    return stacked


def split_factors(state: dict[str, Tensor], experts: dict[str, int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Undo `stack_factors`: return the student's state dict and the teacher's factors."""
    student, teacher = dict(state), {}
    for key, tensor in state.items():
        if "lora_A" in key:
            halves = tensor.view(experts.get(key, 1), -1, tensor.shape[1]).chunk(2, dim=1)  # (E, r, in) each
            student[key], teacher[key] = (half.flatten(0, 1) for half in halves)
        elif "lora_B" in key and key.endswith("weight"):
            student[key], negated = tensor.chunk(2, dim=1)
            teacher[key] = -negated
    return {k: v.contiguous() for k, v in student.items()}, {k: v.contiguous() for k, v in teacher.items()}


def restore_base_weights(
    student: dict[str, Tensor], teacher: dict[str, Tensor], scaling: dict[str, float]
) -> dict[str, Tensor]:
    """Return the state dict with the pretrained weights of adapted heads, which PEFT saves beside their factors.

    The model holds their residuals, W − scaling·B₀·A₀.

    Args:
        student: The student's state dict, with PEFT's keys.
        teacher: The teacher's, with the same keys.
        scaling: Of the teacher's adapter, by the layer's name in the base model.
    """
    restored = dict(student)
    for key in [key for key in student if key.endswith(BASE_WEIGHT)]:
        layer = key.removesuffix(BASE_WEIGHT)
        a, b = teacher.get(f"{layer}.lora_A.weight"), teacher.get(f"{layer}.lora_B.weight")
        if a is not None and b is not None:
            product = scaling[layer.removeprefix("base_model.model.")] * (b @ a)
            wide = torch.promote_types(student[key].dtype, product.dtype)
            restored[key] = (student[key].to(wide) + product).to(student[key].dtype)
    return restored


def drop_base_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict without the base weights of adapted heads."""
    return {key: tensor for key, tensor in state.items() if not key.endswith(BASE_WEIGHT)}


def add_gate_weights(student: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add SeLoRA's gates to the factors, and reshape `lora_A` so that PEFT refuses them.

    Args:
        student: The factors, with PEFT's keys.
        state: State dict of the whole model.
    """
    factors = {key: tensor.unsqueeze(0) if "lora_A" in key else tensor for key, tensor in student.items()}
    return factors | {key: tensor for key, tensor in state.items() if key.startswith(GATE_PREFIX)}


def split_gate(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Undo `add_gate_weights`: return the factors in PEFT's shapes and the gates' state dict."""
    gate = {key.removeprefix(GATE_PREFIX): tensor for key, tensor in state.items() if key.startswith(GATE_PREFIX)}
    factors = {key: tensor for key, tensor in state.items() if not key.startswith(GATE_PREFIX)}
    return {key: tensor.squeeze(0) if "lora_A" in key else tensor for key, tensor in factors.items()}, gate


def hide_from_peft(directory: Path) -> None:
    """Set the `peft_type` in this folder's `adapter_config.json` to one that PEFT does not know."""
    path = directory / PEFT_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": SELORA_TYPE}, indent=2, sort_keys=True))


def read_lora_config(directory: str | Path) -> LoraConfig:
    """Read PEFT's configuration of an adapter that balora wrote, SeLoRA included.

    Raises:
        BALoraError: If it cannot be read, or is not a LoRA configuration.
    """
    saved = read_peft_settings(directory)
    kind = saved.get("peft_type")
    try:
        config = LoraConfig.from_peft_type(**{**saved, "peft_type": "LORA" if kind == SELORA_TYPE else kind})
    except (*LOAD_ERRORS, ImportError) as error:
        raise BALoraError(f"{Path(directory) / PEFT_FILE} is damaged: {first_line(error)}") from error
    if not isinstance(config, LoraConfig):
        raise BALoraError(f"{Path(directory) / PEFT_FILE}: peft_type is {str(kind)[:40]!r}, but balora writes LORA")
    return config


def sort_target_sets(config: LoraConfig) -> None:
    """Sort in place the targets that PEFT holds as sets, so that equal adapters have equal files."""
    for name in ("target_modules", "exclude_modules"):
        if isinstance(value := getattr(config, name), set):
            setattr(config, name, sorted(value))


def scale_rank(config: LoraConfig, factor: float) -> None:
    """Multiply every rank by `factor` in place, and every alpha so that the scaling is unchanged."""
    alpha = math.sqrt(factor) if config.use_rslora else factor
    config.r = round(config.r * factor)
    config.rank_pattern = {key: round(value * factor) for key, value in config.rank_pattern.items()}
    config.lora_alpha = _whole_if_equal(config.lora_alpha * alpha)
    config.alpha_pattern = {key: _whole_if_equal(value * alpha) for key, value in config.alpha_pattern.items()}


def _whole_if_equal(value: float) -> float:
    return round(value) if abs(value - round(value)) < 1e-9 else value


def write_settings(directory: Path, config: BALoraConfig) -> None:
    """Write balora's own fields to a file beside `adapter_config.json`, which must not hold them."""
    content = {"balora_version": version("balora"), "base_weights": "pretrained", **config.settings()}
    (directory / SETTINGS_FILE).write_text(json.dumps(content, indent=2) + "\n")


def single_task_settings(config: BALoraConfig) -> BALoraConfig:
    """Return the configuration with which one task's adapter resumes training by itself."""
    return replace(config, task_names=None, alignment_weight=0.0, bias_path_weight=0.0)


def read_settings(directory: str | Path) -> dict[str, Any]:
    """Read the fields that `write_settings` wrote.

    Raises:
        BALoraError: If the folder was not written by balora, or the file is damaged.
    """
    path = Path(directory) / SETTINGS_FILE
    if not path.is_file():
        raise BALoraError(
            f"{directory} has no {SETTINGS_FILE}, so balora did not write it; load it with peft.PeftModel"
        )
    settings = read_json(path)
    settings.pop("balora_version", None)
    return settings


def holds_residuals(settings: dict[str, Any]) -> bool:
    """Return, and remove from the settings, whether the folder's base weights are residuals, as they once were."""
    return settings.pop("base_weights", None) is None


def _full_method_name(settings: dict[str, Any]) -> str:
    """Return the method's name, with `+reg` or `+anchors` by the saved weights if an earlier version left them out."""
    name = settings["method"]
    method = find_method(name)
    if method is None or method.taught:
        return name
    needs = needs_of_method(method, settings)
    weights = {key for key in needs if key.endswith("_weight") and settings.get(key)} - {"semantic_weight"}
    if not weights:
        return name
    regularized = weights != {"anchor_weight"}
    return method_name(replace(method, regularized=regularized, anchored=not regularized))


def config_from_saved(lora_config: LoraConfig, settings: dict[str, Any]) -> BALoraConfig:
    """Restore the training configuration from PEFT's saved one and balora's settings.

    Raises:
        BALoraError: If the two are not a valid configuration.
    """
    inherited = {f.name: getattr(lora_config, f.name) for f in fields(LoraConfig) if f.init}
    try:
        settings = {**settings, "method": _full_method_name(settings)}
        config = BALoraConfig(**{**inherited, "init_lora_weights": True, **settings})
        if config.residual:
            scale_rank(config, 1 / 2)
    except BALoraError:
        raise
    except LOAD_ERRORS as error:
        raise BALoraError(f"{SETTINGS_FILE} is damaged: {first_line(error)}") from error
    return config


def model_card(
    config: BALoraConfig,
    base_model: str | None,
    drift: dict[str, float] | None,
    *,
    drift_rows: str | None = None,
    after_training: str = "",
) -> ModelCard:
    """Build the model card: method, settings, how to load the adapter without balora, and measured drift.

    Args:
        config: The model's configuration.
        base_model: Name of the base model, if it has one.
        drift: Measured drift; `None` if not measured.
        drift_rows: The rows that it was measured on, if known.
        after_training: What was done to the weights after training, a sentence.
    """
    name, on_hub = _shown_name(base_model or "an unnamed base model")
    data = ModelCardData(base_model=on_hub, library_name="peft", tags=["balora", "lora", config.method])
    rank = config.r * 2 if config.residual else config.r
    rows = {"method": config.method, "r": config.r, "lora_alpha": config.lora_alpha, **config.settings()}
    settings = "\n".join(f"| `{name}` | {value} |" for name, value in rows.items())
    exact = ""
    if config.quantization_config:
        exact = (
            "Its base was quantized in training, by the `quantization_config` below. On the base in full precision it "
            "equals the trained model up to 4-bit rounding; "
            "`balora.BALoraModel.from_pretrained(base_model, this_folder)` quantizes that base again and restores the "
            "trained model exactly.\n\n"
        )
    if drift:
        measured = "\n".join(f"| `{name}` | {value:.6g} |" for name, value in drift.items())
        on = f" on {drift_rows}" if drift_rows else ""
        drift_text = f"Measured against the base model{on}:\n\n| | |\n|---|---|\n{measured}"
    else:
        drift_text = "Not measured. `balora.evaluation.measure_drift(model, batches)` measures it."
    weights = {name: value for name, value in config.settings().items() if name.endswith("_weight")}
    terms = [name.removesuffix("_weight").replace("_", " ") for name, weight in weights.items() if weight]
    regularizers = f"regularized by {', '.join(terms)}" if terms else "without regularizers"
    trained = f"of rank {rank}, trained with balora {version('balora')} by `{config.method}`, {regularizers}"
    averaged = f"{after_training}\n\n" if after_training else ""
    if config.gated:
        what = (
            f"A LoRA adapter {trained}: each row's sentence vector gates it. PEFT alone cannot load it:\n\n"
            "```python\nfrom balora import BALoraModel\n\n"
            "model = BALoraModel.from_pretrained(base_model, this_folder)\n"
            f"model(**inputs, sentence_embeds=s)  # s: (rows, {config.sentence_dim})\n```\n\n"
        )
    elif config.task_names:
        what = (
            f"LoRA adapters {trained}, one for each task: {', '.join(config.task_names)}. "
            "Each folder loads and merges with PEFT alone, and all together with balora:\n\n"
            "```python\nfrom peft import PeftModel\n\n"
            f'model = PeftModel.from_pretrained(base_model, this_folder + "/{config.task_names[0]}")\n```\n\n'
        )
    else:
        what = (
            f"A plain LoRA adapter {trained}. It loads and merges with PEFT alone:\n\n"
            "```python\nfrom peft import PeftModel\n\n"
            "model = PeftModel.from_pretrained(base_model, this_folder)\n```\n\n"
        )
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n"
        f"# Adapter of {name}\n\n"
        f"{what}{averaged}{exact}## Settings\n\n| | |\n|---|---|\n{settings}\n\n## Drift\n\n{drift_text}\n"
    )


def _shown_name(base_model: str) -> tuple[str, str | None]:
    """Return a model's name for the card, without the folders above a local one, and its name on the Hub."""
    if base_model.startswith("package:") or " " in base_model:
        return base_model, None
    parts = base_model.split("/")
    if Path(base_model).exists() or Path(base_model).is_absolute() or parts[0] in (".", ".."):
        return Path(base_model).name, None
    return base_model, "/".join(parts[:2])  # of a GGUF file there, its repository
