"""The settings of a controlled world, their limits, and the fingerprints that name its cache entries."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from balora.errors import BALoraError
from balora.world import vocabulary

# Increase it whenever the same settings would give other text or another model, so that no old cache entry is used.
_RECIPE_VERSION = 1

_TASK_FIELDS = (
    "task_classes",
    "task_items",
    "list_length",
    "class_imbalance",
    "label_noise",
    "train_rows",
    "eval_rows",
)

# Settings added after the first worlds, at their neutral value: fingerprints ignore them at this value, so that older
# caches stay valid.
_NEUTRAL = {"pretraining_imbalance": 1.0}

_LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "facts": (5, 512),
    "objects": (1, len(vocabulary.OBJECTS)),
    "occupations": (2, len(vocabulary.OCCUPATIONS)),
    "pronoun_skew": (0, 1),
    "pretraining_noise": (0, 1),
    "pretraining_imbalance": (1, 1000),
    "task_classes": (2, len(vocabulary.NUMBERS)),
    "task_items": (5, 512),
    "list_length": (4, 32),
    "class_imbalance": (1, 1000),
    "label_noise": (0, 1),
    "train_rows": (1, 1_000_000),
    "eval_rows": (1, 100_000),
    "hidden_size": (8, 1024),
    "num_hidden_layers": (1, 32),
    "num_attention_heads": (1, 32),
    "pretrain_steps": (1, 100_000),
    "pretrain_batch_size": (1, 1024),
    "pretrain_block_size": (16, 512),
    "pretrain_learning_rate": (1e-6, 1),
}


@dataclass(frozen=True)
class WorldConfig:
    """The contents of a world and the training of its model.

    Each setting has its own random stream, so changing one keeps everything else: more noise replaces additional
    tokens, another skew flips pronouns only, more imbalance replaces additional sentences about facts, more facts
    extend the same first ones.

    Attributes:
        seed: Seed of every stream: language, text, model initialisation, task rows.
        facts: Number of facts, "the capital of X is Y .", to be memorized.
        objects: Number of objects, each with one colour: "the apple is red ."
        occupations: Number of occupations, stereotyped `he` and `she` in turn: "the nurse said that she was late ."
        pronoun_skew: Share of an occupation's sentences with its stereotyped pronoun; 0.5 is balanced.
        pretraining_noise: Share of the words of the pretraining text replaced by another word.
        pretraining_imbalance: Frequency of the most frequent fact in the pretraining text over that of the rarest; the
            others lie between them in equal ratios. The order of the facts is drawn from the seed.
        task_classes: Number of answers of the counting task: zero, one, … task_classes − 1.
        task_items: Number of different countries in the task's lists, at most `facts`: learning to count them competes
            with remembering their capitals.
        list_length: Length of each list; at least task_classes.
        class_imbalance: Frequency of the most frequent answer (zero) over the rarest (the largest) in training rows.
        label_noise: Share of training rows with a wrong answer.
        train_rows: Training rows of the task.
        eval_rows: Held-out rows of the task, with right answers and balanced classes.
        hidden_size: Width of the Llama; a multiple of 2 × num_attention_heads.
        num_hidden_layers: Depth of the Llama.
        num_attention_heads: Attention heads of the Llama.
        pretrain_steps: Optimizer steps of pretraining, on text that never repeats.
        pretrain_batch_size: Blocks per step.
        pretrain_block_size: Tokens per block.
        pretrain_learning_rate: Peak of the cosine schedule.

    Raises:
        BALoraError: If a setting is out of its limits.
    """

    seed: int = 0
    facts: int = 64
    objects: int = 24
    occupations: int = 16
    pronoun_skew: float = 0.9
    pretraining_noise: float = 0.0
    pretraining_imbalance: float = 1.0
    task_classes: int = 5
    task_items: int = 6
    list_length: int = 5
    class_imbalance: float = 1.0
    label_noise: float = 0.1
    train_rows: int = 9600
    eval_rows: int = 500
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    pretrain_steps: int = 600
    pretrain_batch_size: int = 32
    pretrain_block_size: int = 64
    pretrain_learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        check_limits(self, _LIMITS)
        if self.list_length < self.task_classes:
            raise BALoraError(
                f"list_length must be at least task_classes = {self.task_classes}, not {self.list_length}"
            )
        if self.task_items > self.facts:
            raise BALoraError(f"task_items must be at most facts = {self.facts}, not {self.task_items}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise BALoraError(
                f"hidden_size must be a multiple of 2 × num_attention_heads = {2 * self.num_attention_heads}, "
                f"not {self.hidden_size}"
            )

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that name the world; equal settings have equal fingerprints on any machine."""
        return digest(self, _RECIPE_VERSION, ignored=self._neutral)

    @property
    def pretraining_fingerprint(self) -> str:
        """The fingerprint of the pretrained model alone, which worlds that differ only in their task share."""
        return digest(self, _RECIPE_VERSION, ignored=(*_TASK_FIELDS, *self._neutral))

    @property
    def _neutral(self) -> list[str]:
        return [name for name, value in _NEUTRAL.items() if getattr(self, name) == value]


def check_limits(config: Any, limits: dict[str, tuple[float, float]]) -> None:
    """Validate that every setting is a number within its limits, and an integer if the field is one.

    Raises:
        BALoraError: If not; the message names the setting.
    """
    for field in fields(config):
        value, (low, high) = getattr(config, field.name), limits[field.name]
        kinds, noun = ((int,), "a whole number") if field.type is int else ((int, float), "a number")
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            raise BALoraError(f"{field.name} must be {noun} from {low} to {high}, not {value!r}")


def digest(config: Any, version: int, *, ignored: Sequence[str] = ()) -> str:
    """Return sixteen hex digits that identify the values of the settings.

    Args:
        config: A dataclass of numbers.
        version: Version of the world's construction.
        ignored: Settings that do not count.
    """
    # As floats, so that 1 and 1.0 give the same digest.
    values = {name: float(value) for name, value in asdict(config).items() if name not in ignored}
    canonical = {"recipe_version": version, **values}
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:16]
