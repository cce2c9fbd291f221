"""Settings of a configuration that have no effect, so that none that a user set is silently ignored."""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, NamedTuple

from peft import TaskType

from balora.config.initialization import SELORA
from balora.config.methods import Method, find_method, method_name
from balora.config.regularizers import Regularizers


class Use(NamedTuple):
    """A condition for a setting to have an effect.

    Attributes:
        holds: Function that tells whether it holds of a configuration resolved for its task, or of a recipe.
        needs: The condition in words, for the error.
    """

    holds: Callable[[Any], bool]
    needs: str


def _weight(name: str) -> Use:
    return Use(lambda config: bool(getattr(config, name)), f"{name} above 0")


def _initialization(name: str, named: str) -> Use:
    return Use(lambda config: config.initialization == name, f"method {named}")


_IS_CLASSIFIER = Use(lambda config: config.task_type == TaskType.SEQ_CLS, "a classification task")
_GENERATION = Use(lambda config: config.task_type != TaskType.SEQ_CLS, "a generation task")
_OUTPUTS = Use(
    lambda config: any(getattr(config, f"{term}_weight") for term in ("consistency", "diversity", "spectral")),
    "consistency_weight, diversity_weight or spectral_weight above 0",
)
_CACHED = Use(lambda config: config.task_type != TaskType.SEQ_2_SEQ_LM, "a classifier or a causal language model")
_TEACHER = Use(
    lambda config: bool(config.consistency_weight or config.anchor_weight),
    "consistency_weight or anchor_weight above 0",
)
_TWO_PHASE = Use(
    lambda config: any(
        getattr(config, f"{term}_weight") and getattr(config, f"{term}_schedule") == "two_phase"
        for term in ("consistency", "diversity", "spectral")
    ),
    "a two_phase schedule",
)
_BATCH_MATRIX = Use(
    lambda config: bool(config.spectral_weight or (config.diversity_weight and config.diversity_loss == "covariance")),
    "spectral_weight above 0, or diversity_weight above 0 with diversity_loss covariance",
)
_ENTROPY = Use(
    lambda config: bool(config.diversity_weight) and config.diversity_loss != "covariance",
    "diversity_weight above 0 with an entropy as diversity_loss",
)

#: What each setting needs to have an effect, all of it. Settings that are not listed always have one.
USES: dict[str, tuple[Use, ...]] = {
    **dict.fromkeys(
        ("temperature", "consistency_direction", "consistency_schedule"), (_weight("consistency_weight"),)
    ),
    "sample_rate": (_weight("consistency_weight"),),
    "teacher_cache_mb": (_CACHED, _TEACHER),
    **dict.fromkeys(("diversity_loss", "diversity_schedule"), (_weight("diversity_weight"),)),
    "top_k": (_ENTROPY,),
    **dict.fromkeys(("spectral_k", "spectral_schedule"), (_weight("spectral_weight"),)),
    "clip_spectral_k": (_IS_CLASSIFIER, _weight("spectral_weight")),
    "gather_batch_terms": (_BATCH_MATRIX,),
    **dict.fromkeys(("two_phase_warmup", "two_phase_ramp"), (_TWO_PHASE,)),
    "anchor_share": (
        Use(
            lambda config: bool(config.anchor_weight or config.replay_weight), "anchor_weight or replay_weight above 0"
        ),
    ),
    "anchor_every": (_weight("anchor_weight"),),
    "counterfactual_words": (_TEACHER,),
    **dict.fromkeys(
        ("bias_path_mode", "bias_path_radius", "bias_path_sample_rate", "bias_path_reduction"),
        (_weight("bias_path_weight"),),
    ),
    **dict.fromkeys(("semantic_min_similarity", "semantic_reduction"), (_weight("semantic_weight"),)),
    **dict.fromkeys(("gate", "gate_hidden", "sentence_dim"), (_initialization(SELORA, "selora"),)),
    "pissa_niter": (_initialization("pissa", "pissa or ba-lora"),),
    "corda_method": (_initialization("corda", "corda"),),
    "oplora_k": (_initialization("oplora", "oplora"),),
    **dict.fromkeys(("fused_lm_head", "task_loss"), (_GENERATION,)),
    "regularized_tokens": (_GENERATION, _OUTPUTS),
}


#: Weights of terms that belong to no part of a method's name but to SeLoRA, to several tasks and to `+anchors`.
_OWN_USE = ("semantic_weight", "alignment_weight", "anchor_weight")


def has_anchors(settings: Any) -> bool:
    """Return whether a configuration, or a recipe, trains with self-anchors."""
    method = find_method(settings.method)
    if method is None or not method.taught:
        return False
    return method.anchored if settings.anchor_weight is None else settings.anchor_weight > 0


def reads_own_texts(settings: Any) -> bool:
    """Return whether a configuration, or a recipe, trains on texts that the model wrote: self-anchors or replay."""
    method = find_method(settings.method)
    return has_anchors(settings) or bool(method and method.regularized and settings.replay_weight)


def needs_of_method(method: Method, names: Iterable[str]) -> dict[str, str]:
    """Return the settings that a method has no use for by its name, each with what it needs.

    Args:
        method: The method.
        names: Settings to look at. Every weight but those of adapters and anchors is a regularizer's.
    """
    needs = {}
    if not method.regularized:
        other = method_name(replace(method, regularized=True, loraplus=False))
        weights = (name for name in names if name.endswith("_weight") and name not in _OWN_USE)
        needs |= dict.fromkeys(weights, f"a method with regularizers, such as {other}")
    if not method.taught:
        for name, swapped in (("anchor_weight", False), ("counterfactual_words", True)):
            other = method_name(replace(method, anchored=True, swapped=swapped))
            needs[name] = f"a method with a teacher, such as {other} or ba-lora"
    if not method.gated:
        needs["semantic_weight"] = "method selora"
    return needs


def unused_settings(config: Any, names: Iterable[str]) -> dict[str, str]:
    """Return the settings that have no effect, each with what it needs.

    Args:
        config: A `BALoraConfig` resolved for its task.
        names: The settings to look at: those that the user set.
    """
    own_terms = (f.name for f in fields(config) if f.name.endswith("_weight") and not hasattr(Regularizers, f.name))
    if any(getattr(config, name) for name in own_terms):
        return {}  # a term that a subclass adds may use any setting
    return {name: use.needs for name in names for use in reversed(USES.get(name, ())) if not use.holds(config)}
