"""The student: the model that a run trains, its teacher, and how it is checked, loaded and saved."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel, TaskType
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from transformers.utils import GENERATION_CONFIG_NAME

from balora.adapters.after_training import check_after_training, check_changeable
from balora.adapters.averaging import check_averaging
from balora.adapters.ewc import check_ewc, fisher_diagonals
from balora.adapters.loading import (
    PEFT_FILE,
    BaseFunction,
    check_all_weights_loaded,
    compare_first_tokens,
    load_adapter,
    read_peft_settings,
    read_weights,
    resize_to_adapter,
)
from balora.adapters.model_checks import check_head_unadapted, check_head_untargeted
from balora.adapters.new_modules import check_new_modules_saved, mark_new_modules, trained_head
from balora.adapters.saving import SETTINGS_FILE
from balora.adapters.targets import check_targets
from balora.adapters.teacher import teacher_mode
from balora.adapters.trained_in_full import warn_about_half_precision
from balora.anchors import Anchors, cached_anchors, texts_as_anchors
from balora.baselines import BASELINES
from balora.baselines.trained_parameters import TRAINED_FILE, load_trained_parameters, save_trained_parameters
from balora.config import BALoraConfig, find_method
from balora.config.unused import reads_own_texts
from balora.counterfactual import read_word_groups
from balora.data.vocabulary import guard_embeddings
from balora.errors import BALoraError
from balora.model.base import BALoraModel
from balora.model.build import get_balora_model, set_texts, task_of
from balora.recipe import Recipe
from balora.recipe.methods import ANCHORS
from balora.report import PRETRAINED
from balora.study.method_config import adapter_settings, balora_config, loading_settings, protects
from balora.study.model_and_data import ModelAndData
from balora.study.sentences import sentence_dim
from balora.study.trainers import build_trainer
from balora.utils.distributed import broadcast_from_main, is_main_process
from balora.utils.lengths import context_length
from balora.utils.modules import evaluation_mode
from balora.utils.progress import tracked


def build_student(
    prepared: ModelAndData, label: str, seed: int, checkpoint: str | None
) -> PreTrainedModel | PeftModel:
    """Build the model to train: the base model with the recipe's method applied.

    Args:
        prepared: The run's model, rows and metrics.
        label: The method's name in tables; `pretrained` for the untouched model.
        seed: Seed of the adapter's initialization.
        checkpoint: Folder to resume from, which fills a regularized model here; a baseline is filled by its trainer.
    """
    recipe = prepared.recipe
    if label == PRETRAINED:
        # LoRA adds nothing before its first step, so this is the untouched model in the same class as the others.
        plain = BALoraConfig(method="lora", **adapter_settings(recipe))
        return get_balora_model(prepared.load_model(), plain)
    if recipe.method in BASELINES:
        return _build_baseline(prepared.load_model(), recipe)
    method = find_method(recipe.method)
    check_knowledge(recipe)
    # Sampled before the base is loaded, so that memory never holds two base models.
    anchors = anchors_of(prepared) if reads_own_texts(recipe) else None
    base = prepared.load_model(**loading_settings(recipe))
    config = balora_config(recipe, seed, sentence_dim(prepared, base) if method.gated else None)
    _check_after_training(replace(config, task_type=task_of(base)), recipe)
    if checkpoint is not None:
        model = BALoraModel.from_pretrained(base, checkpoint, is_trainable=True)
        set_texts(model, prepared.tokenizer, anchors)
    else:
        batches = start_batches(prepared, base, seed) if method.from_data else None
        model = get_balora_model(base, config, batches, tokenizer=prepared.tokenizer, anchors=anchors)
    if recipe.after_training:
        check_changeable(model)
    if protects(recipe):
        model.fisher = fisher_diagonals(model, knowledge_batches(prepared, base))
    return model


def _build_baseline(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel | PeftModel:
    baseline = BASELINES[recipe.method]
    settings = vars(recipe) | adapter_settings(recipe)  # the latter fills in lora_alpha
    built = baseline.build(model, **{name: settings[name] for name in baseline.settings})
    if _trained_by_trl(recipe):
        check_head_unadapted(built)
    warn_about_half_precision(built)
    return built


def _trained_by_trl(recipe: Recipe) -> bool:
    return not (recipe.is_classification or recipe.is_seq2seq)


def is_saved_student(folder: str) -> bool:
    """Return whether a folder holds what `save_student` writes, or an adapter of PEFT's."""
    return any((Path(folder) / file).is_file() for file in (PEFT_FILE, SETTINGS_FILE, TRAINED_FILE, "config.json"))


def load_student(prepared: ModelAndData, folder: str) -> tuple[PreTrainedModel | PeftModel, "Teacher"]:
    """Load what was trained from the pretrained model, an adapter or a whole model; also return its teacher.

    Raises:
        BALoraError: If it does not fit the model.
    """
    if not any((Path(folder) / file).is_file() for file in (PEFT_FILE, SETTINGS_FILE)):
        if (Path(folder) / TRAINED_FILE).is_file():
            model = load_trained_parameters(prepared.load_model(), folder)
        else:
            model = prepared.load_model(folder=folder)
        return model, _separate_teacher(prepared, model)
    base = prepared.load_model(**loading_settings(prepared.recipe))
    if (Path(folder) / SETTINGS_FILE).exists():
        model = BALoraModel.from_pretrained(base, folder, is_trainable=True)
        return model, teacher_of(prepared, model)
    read_peft_settings(folder)
    state = read_weights(folder, "cpu", use_safetensors=prepared.recipe.use_safetensors)
    check_new_modules_saved(base, folder, state)
    kind = type(base).__name__
    pretrained = BaseFunction.of(base)
    common = resize_to_adapter(base, state)
    if common is not None:
        guard_embeddings(base, prepared.tokenizer, source=f"adapter: {folder}")
    model, loaded = load_adapter(base, folder, is_trainable=True)
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[model.active_peft_config.peft_type]
    check_all_weights_loaded(folder, kind, loaded, model.active_adapter, prefix)
    if pretrained.is_restored(model):
        return model, teacher_of(prepared, model)
    teacher = _separate_teacher(prepared, model)
    if common is not None and base.get_output_embeddings() is not None:
        warnings.warn(
            f"balora: {folder} has another vocabulary than its base; the {common} tokens of both are compared"
        )
        compare_first_tokens((model, teacher.model), common)
    return model, teacher


def check_knowledge(recipe: Recipe) -> None:
    """Check that a method which protects what texts use is given texts.

    Raises:
        BALoraError: If it is not, or the model has a decoder, which texts alone do not feed.
    """
    method = find_method(recipe.method)
    needs = method.from_inputs and (method.initialization != "corda" or recipe.corda_method == "kpm")
    needs = needs or protects(recipe)
    if needs and recipe.knowledge_file is None:
        raise BALoraError(
            f"knowledge_file: missing; {recipe.method} keeps what the texts in it use (corda in mode kpm, ewc); "
            f"name a file of texts, or {ANCHORS} for texts that the model generates"
        )
    if method.from_inputs and recipe.knowledge_file is not None and recipe.is_seq2seq:
        raise BALoraError("knowledge_file: only for models without a decoder; leave it out")


def start_batches(prepared: ModelAndData, base: PreTrainedModel, seed: int) -> list[dict[str, Tensor]]:
    """Return the batches that the recipe's method is initialized from: of its knowledge, or of training rows."""
    recipe = prepared.recipe
    if recipe.knowledge_file is None or not find_method(recipe.method).from_inputs:
        return first_batches(prepared, seed)
    return knowledge_batches(prepared, base)


def knowledge_batches(prepared: ModelAndData, base: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Return the first `start_batches` batches of what to keep: the user's texts, or the self-anchors."""
    recipe, tokenizer = prepared.recipe, prepared.tokenizer
    size = recipe.per_device_train_batch_size
    if recipe.knowledge_file == ANCHORS:
        kept = anchors_of(prepared)
    else:
        long_enough = (text for text in prepared.knowledge if len(tokenizer(text, verbose=False)["input_ids"]) > 1)
        texts = list(islice(long_enough, recipe.start_batches * size))
        kept = texts_as_anchors(texts, tokenizer, length=recipe.max_length or context_length(base.config, tokenizer))
    rows = zip(kept.input_ids.split(size), kept.attention_mask.split(size), strict=True)
    return [{"input_ids": ids, "attention_mask": mask} for ids, mask in islice(rows, recipe.start_batches)]


def first_batches(prepared: ModelAndData, seed: int) -> list[dict[str, Tensor]]:
    """Return the first training batches, for methods that are initialized from data.

    They come from a trainer on a model of its own, which is dropped, because TRL's trainer changes its model.
    """
    with TemporaryDirectory(prefix="balora-") as scratch:
        trainer = build_trainer(prepared, prepared.load_model(), seed, Path(scratch), [])
        count = prepared.recipe.start_batches
        batches = list(tracked(islice(trainer.get_train_dataloader(), count), "first batches", total=count))
        return broadcast_from_main(lambda: batches)  # each process has its own part of the rows


def check_fit(model: PreTrainedModel, recipe: Recipe) -> None:
    """Check that a recipe's method fits a model.

    Args:
        model: May be on the meta device; unusable afterwards.
        recipe: Its method and settings.

    Raises:
        BALoraError: Naming the setting that does not fit.
    """
    if recipe.method in BASELINES:
        _build_baseline(model, recipe)
        return
    loading_settings(recipe)
    if recipe.counterfactual_words is not None:
        read_word_groups(recipe.counterfactual_words)
    check_knowledge(recipe)
    config = balora_config(recipe, recipe.seed, sentence_dim=1)  # any length will do here
    config.resolve(task_of(model))
    if protects(recipe):
        check_ewc(config)
    _check_after_training(config, recipe)
    check_targets(model, config.lora_config())
    if _trained_by_trl(recipe):
        check_head_untargeted(model, config.lora_config())


def _check_after_training(config: BALoraConfig, recipe: Recipe) -> None:
    if recipe.wise_ft is not None:
        check_averaging(config)
    check_after_training(config, recipe.after_training)


def method_callbacks(method: str) -> list[TrainerCallback]:
    """Return the trainer callbacks that a method needs."""
    return [callback() for callback in BASELINES[method].callbacks] if method in BASELINES else []


@dataclass(frozen=True)
class Teacher:
    """The pretrained function, called with a model's inputs.

    Attributes:
        function: What is called.
        model: The model whose modules compute it: the student, or a separate one.
    """

    function: Callable[..., Any]
    model: PreTrainedModel | PeftModel

    def __call__(self, **inputs: Any) -> Any:
        """Return the model's output."""
        return self.function(**inputs)


def teacher_of(prepared: ModelAndData, student: PreTrainedModel | PeftModel) -> Teacher:
    """Return the pretrained function as in `BALoraModel.teacher_forward`: a classifier's uses the student's head."""
    if isinstance(student, BALoraModel):
        return Teacher(student.teacher_forward, student)
    if isinstance(student, PeftModel):
        settings = student.active_peft_config
        live_head = settings.task_type == TaskType.SEQ_CLS
        # The inner model leaves out a trained prompt, which is no layer.
        function = student.get_base_model() if settings.is_prompt_learning else student

        def without_adapter(**inputs: Any) -> Any:
            with teacher_mode(student, live_head=live_head):
                return function(**inputs)

        return Teacher(without_adapter, student)
    return _separate_teacher(prepared, student)


def _separate_teacher(prepared: ModelAndData, student: PreTrainedModel | PeftModel) -> Teacher:
    """Load the pretrained model beside the student, a classifier with the student's head."""
    pretrained = prepared.load_model(**loading_settings(prepared.recipe)).to(student.device)
    pretrained.config.use_cache = False  # with a cache, packed rows would read one another
    if prepared.recipe.is_classification:
        pretrained.load_state_dict(trained_head(student, mark_new_modules(pretrained)), strict=False)

    def separate(**inputs: Any) -> Any:
        with evaluation_mode(pretrained), torch.no_grad():
            return pretrained(**inputs)

    return Teacher(separate, pretrained)


def save_student(student: PreTrainedModel | PeftModel, directory: Path) -> None:
    """Save a PEFT model as an adapter, a fully trained one as a Transformers model, else its trained parameters.

    Every process calls this, since a sharded model is gathered; the first one writes.
    """
    if isinstance(student, BALoraModel):
        student.save_pretrained(directory, is_main_process=is_main_process())
    if isinstance(student, BALoraModel) or not is_main_process():
        return
    if isinstance(student, PeftModel) or all(p.requires_grad for p in student.parameters()):
        student.save_pretrained(directory)
    else:
        save_trained_parameters(student, directory)


def save_generation_settings(model: PreTrainedModel | PeftModel, directory: Path) -> None:
    """Save where generation stops, and the other generation settings, beside an adapter.

    The settings are written without Transformers' validation, which some published models do not pass.
    """
    settings = getattr(model, "generation_config", None)
    if settings is not None and model.can_generate():
        settings.to_json_file(directory / GENERATION_CONFIG_NAME)


def anchors_of(prepared: ModelAndData) -> Anchors:
    """Return the anchors, which are the same for every method and seed.

    Raises:
        BALoraError: If a setting does not fit the model.
    """
    recipe, tokenizer = prepared.recipe, prepared.tokenizer
    if prepared.anchors:
        return texts_as_anchors(prepared.anchors, tokenizer, length=recipe.anchor_length)
    settings = {"count": recipe.anchor_samples, "length": recipe.anchor_length}
    return cached_anchors(lambda: prepared.load_model(on_device=True), tokenizer, **settings)
