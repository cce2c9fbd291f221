"""The model that a run trains: any method's, with the pretrained function to hold it against, and how it is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType
from safetensors.torch import save_file
from transformers import PreTrainedModel, TrainerCallback

from balora.adapters.targets import check_targets
from balora.adapters.teacher import as_teacher
from balora.build import get_balora_model
from balora.config import BALoraConfig
from balora.model import BALoraModel
from balora.modes import evaluation_mode
from balora.recipe import RUN_METHODS, Recipe
from balora.report import PRETRAINED
from balora.rivals import RIVALS, AdaLoraCallback, make_adalora, make_rival
from balora.study.workload import Workload

#: What recipes and `LoraConfig` call alike.
ADAPTER_SETTINGS = ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save")
TRAINED_FILE = "trained_parameters.safetensors"


def build_student(workload: Workload, label: str, seed: int, checkpoint: str | None) -> PreTrainedModel | PeftModel:
    """The pretrained model in the clothes of the recipe's method, or a regularized one as its checkpoint has it.

    Args:
        workload: Of the run.
        label: `pretrained` for the untouched model.
        seed: Of the adapter's start.
        checkpoint: Folder to go on from; rivals are filled from it by their trainer.
    """
    base, recipe = workload.load_model(), workload.recipe
    adapter = {name: getattr(recipe, name) for name in ADAPTER_SETTINGS}
    if label == PRETRAINED:
        # A plain LoRA before its first step adds nothing: the untouched model, in the same clothes as the others.
        return get_balora_model(base, BALoraConfig(method="lora", **adapter, **_no_weights()))
    if recipe.method == "adalora":
        return make_adalora(base, **adapter)
    if recipe.method in RIVALS:
        return _rival(base, recipe)
    if checkpoint is not None:
        return BALoraModel.from_pretrained(base, checkpoint, is_trainable=True)
    method, regularized = RUN_METHODS[recipe.method]
    own = [name for name in BALoraConfig(method=method).settings() if name not in ("method", "seed")]
    settings = adapter | {name: getattr(recipe, name) for name in own if name in vars(recipe)}
    if not regularized:
        settings |= _no_weights()
    return get_balora_model(base, BALoraConfig(method=method, seed=seed, **settings))


def check_fit(model: PreTrainedModel, recipe: Recipe) -> None:
    """See that a method's adapters find their place in a model, which may be without weights and is of no use after.

    Raises:
        BALoraError: Naming the setting that does not fit.
    """
    if recipe.method in RIVALS:
        _rival(model, recipe)
    else:
        check_targets(model, LoraConfig(target_modules=recipe.target_modules))


def _rival(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    settings = {"modules_to_save": recipe.modules_to_save, "bottleneck_size": recipe.bottleneck_size}
    return make_rival(model, recipe.method, **settings)


def _no_weights() -> dict[str, float]:
    return {"consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0}


def callbacks_of(recipe_method: str) -> list[TrainerCallback]:
    """What a method needs its trainer to do."""
    return [AdaLoraCallback()] if recipe_method == "adalora" else []


def teacher_of(workload: Workload, student: PreTrainedModel | PeftModel) -> Callable[..., Any]:
    """The pretrained function as `BALoraModel.teacher_forward` has it: in classification, with the student's head."""
    if isinstance(student, BALoraModel):
        return student.teacher_forward
    if isinstance(student, PeftModel):
        live_head = student.active_peft_config.task_type == TaskType.SEQ_CLS

        def beside(**inputs: Any) -> Any:
            with as_teacher(student, live_head=live_head):
                return student(**inputs)

        return beside
    pretrained = workload.load_model().to(student.device)
    if workload.recipe.is_classification:
        backbone = f"{pretrained.base_model_prefix}."
        head = {name: value for name, value in student.state_dict().items() if not name.startswith(backbone)}
        pretrained.load_state_dict(head, strict=False)

    def apart(**inputs: Any) -> Any:
        with evaluation_mode(pretrained):
            return pretrained(**inputs)

    return apart


def save_student(student: PreTrainedModel | PeftModel, directory: Path) -> None:
    """An adapter as PEFT keeps it, a fully tuned model as Transformers does, of other rivals what they trained."""
    trained = {name: p.detach().contiguous() for name, p in student.named_parameters() if p.requires_grad}
    if isinstance(student, PeftModel) or len(trained) == len(list(student.parameters())):
        student.save_pretrained(directory)
    else:
        save_file(trained, directory / TRAINED_FILE)
