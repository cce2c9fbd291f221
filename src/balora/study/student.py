"""The model that a run trains: any method's, with the pretrained function to hold it against, and how it is kept."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import LoraConfig, PeftModel, TaskType
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from balora.adapters.averaging import check_averaging
from balora.adapters.folder import put_on, read_peft_settings, read_weights, refuse_partial
from balora.adapters.saving import SETTINGS_FILE
from balora.adapters.targets import check_targets
from balora.adapters.teacher import as_teacher
from balora.baselines import RIVALS, AdaLoraCallback, make_adalora, make_prompt_tuning, make_rival
from balora.baselines.adalora import refuse_parameters
from balora.config import FROM_DATA, SELORA, BALoraConfig
from balora.counterfactual import Swaps, read_word_groups
from balora.errors import WorkerDone
from balora.model.base import BALoraModel
from balora.model.build import get_balora_model
from balora.model.task_type import task_of
from balora.recipe import Recipe
from balora.recipe.methods import RUN_METHODS
from balora.report import PRETRAINED
from balora.study.anchors import anchors_of
from balora.study.method_config import NO_WEIGHTS, adapter_settings, balora_config, loading_settings
from balora.study.model_and_data import ModelAndData
from balora.study.sentences import sentence_dim
from balora.study.trainers import build_trainer
from balora.utils.distributed import from_main_process, is_main_process
from balora.utils.modules import evaluation_mode

TRAINED_FILE = "trained_parameters.safetensors"


def build_student(
    prepared: ModelAndData, label: str, seed: int, checkpoint: str | None
) -> PreTrainedModel | PeftModel:
    """The pretrained model in the clothes of the recipe's method, or a regularized one as its checkpoint has it.

    Args:
        prepared: Of the run.
        label: `pretrained` for the untouched model.
        seed: Of the adapter's start.
        checkpoint: Folder to go on from; rivals are filled from it by their trainer.
    """
    recipe = prepared.recipe
    if label == PRETRAINED:
        # A plain LoRA before its first step adds nothing: the untouched model, in the same clothes as the others.
        plain = BALoraConfig(method="lora", **adapter_settings(recipe), **NO_WEIGHTS)
        return get_balora_model(prepared.load_model(), plain)
    if recipe.method == "adalora":
        return make_adalora(prepared.load_model(), **adapter_settings(recipe))
    if recipe.method == "prompt-tuning":
        return make_prompt_tuning(prepared.load_model(), num_virtual_tokens=recipe.num_virtual_tokens)
    if recipe.method in RIVALS:
        return _rival(prepared.load_model(), recipe)
    # Before the base is loaded, so that there are never two of them.
    anchored = RUN_METHODS[recipe.method].regularized and recipe.anchor_weight
    anchors = anchors_of(prepared) if anchored else None
    base = prepared.load_model(**loading_settings(recipe))
    gated = RUN_METHODS[recipe.method].start == SELORA
    config = balora_config(recipe, seed, sentence_dim(prepared, base) if gated else None)
    if checkpoint is not None:
        model = BALoraModel.from_pretrained(base, checkpoint, is_trainable=True)
    else:
        batches = first_batches(prepared, seed) if config.method in FROM_DATA else None
        model = get_balora_model(base, config, batches)
    if anchors is not None:
        model.set_anchors(anchors)
    if config.counterfactual_words is not None:
        model.set_swaps(Swaps(read_word_groups(config.counterfactual_words), prepared.tokenizer))
    return model


def load_student(prepared: ModelAndData, folder: str) -> PeftModel:
    """A saved adapter on the pretrained model: balora's with its teacher, others as PEFT loads them.

    Raises:
        BALoraError: If it does not fit the model.
    """
    base = prepared.load_model(**loading_settings(prepared.recipe))
    if (Path(folder) / SETTINGS_FILE).exists():
        return BALoraModel.from_pretrained(base, folder, is_trainable=True)
    read_peft_settings(folder)
    read_weights(folder, "cpu", use_safetensors=prepared.recipe.use_safetensors)
    kind = type(base).__name__
    model, loaded = put_on(base, folder, is_trainable=True)
    refuse_partial(folder, kind, loaded, model.active_adapter)
    return model


def first_batches(prepared: ModelAndData, seed: int) -> list[dict[str, Tensor]]:
    """Batches as training will see them, for methods that start from data.

    From a trainer on a model of its own, which is dropped: TRL's changes the model it is given.
    """
    with TemporaryDirectory(prefix="balora-") as scratch:
        trainer = build_trainer(prepared, prepared.load_model(), seed, Path(scratch), [])
        batches = list(islice(trainer.get_train_dataloader(), prepared.recipe.start_batches))
        return from_main_process(lambda: batches)  # each process has its own part of the rows


def check_fit(model: PreTrainedModel, recipe: Recipe) -> None:
    """See that a method's adapters find their place in a model, which may be without weights and is of no use after.

    Raises:
        BALoraError: Naming the setting that does not fit.
    """
    if recipe.method in RIVALS:
        _rival(model, recipe)
    elif recipe.method == "adalora":
        refuse_parameters(recipe.target_parameters)
        check_targets(model, LoraConfig(target_modules=recipe.target_modules))
    elif recipe.method == "prompt-tuning":
        make_prompt_tuning(model, num_virtual_tokens=recipe.num_virtual_tokens)
    else:
        loading_settings(recipe)
        if recipe.counterfactual_words is not None:
            read_word_groups(recipe.counterfactual_words)
        config = balora_config(recipe, recipe.seed, sentence_dim=1)  # here any will do
        config.resolve(task_of(model))
        if recipe.wise_ft is not None:
            check_averaging(config)
        check_targets(model, config.lora_config())


def _rival(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    settings = {"modules_to_save": recipe.modules_to_save, "bottleneck_size": recipe.bottleneck_size}
    return make_rival(model, recipe.method, **settings)


def callbacks_of(recipe_method: str) -> list[TrainerCallback]:
    """What a method needs its trainer to do."""
    return [AdaLoraCallback()] if recipe_method == "adalora" else []


@dataclass(frozen=True)
class Teacher:
    """The pretrained function, called with a model's inputs.

    Attributes:
        function: What is called.
        model: Whose modules compute it: the student, or a model beside it.
    """

    function: Callable[..., Any]
    model: PreTrainedModel | PeftModel

    def __call__(self, **inputs: Any) -> Any:
        """The model's output."""
        return self.function(**inputs)


def teacher_of(prepared: ModelAndData, student: PreTrainedModel | PeftModel) -> Teacher:
    """The pretrained function as `BALoraModel.teacher_forward` has it: in classification, with the student's head."""
    if isinstance(student, BALoraModel):
        return Teacher(student.teacher_forward, student)
    if isinstance(student, PeftModel):
        live_head = student.active_peft_config.task_type == TaskType.SEQ_CLS

        if student.active_peft_config.is_prompt_learning:

            def without_prompt(**inputs: Any) -> Any:
                with evaluation_mode(student), student.disable_adapter():
                    return student(**inputs)

            return Teacher(without_prompt, student)

        def beside(**inputs: Any) -> Any:
            with as_teacher(student, live_head=live_head):
                return student(**inputs)

        return Teacher(beside, student)
    pretrained = prepared.load_model().to(student.device)
    if prepared.recipe.is_classification:
        backbone = f"{pretrained.base_model_prefix}."
        head = {name: value for name, value in student.state_dict().items() if not name.startswith(backbone)}
        pretrained.load_state_dict(head, strict=False)

    def apart(**inputs: Any) -> Any:
        with evaluation_mode(pretrained):
            return pretrained(**inputs)

    return Teacher(apart, pretrained)


def save_student(student: PreTrainedModel | PeftModel, directory: Path) -> None:
    """An adapter as PEFT keeps it, a fully tuned model as Transformers does, of other rivals what they trained.

    Raises:
        WorkerDone: In every process but the first, once what it holds of the model is gathered.
    """
    if isinstance(student, BALoraModel):
        student.save_pretrained(directory, is_main_process=is_main_process())
    if not is_main_process():
        raise WorkerDone
    if isinstance(student, BALoraModel):
        return
    trained = {name: p.detach().contiguous() for name, p in student.named_parameters() if p.requires_grad}
    if isinstance(student, PeftModel) or len(trained) == len(list(student.parameters())):
        student.save_pretrained(directory)
    else:
        save_file(trained, directory / TRAINED_FILE)
