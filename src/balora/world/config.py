"""The knobs of a controlled world, their limits, and the fingerprints that name its cache entries."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from balora.errors import BALoraError
from balora.world import words

# Raised whenever the same knobs would yield other text or another model, so that no older cache entry is taken for it.
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

# Knobs that came after the first worlds, at the value where they change nothing: at it they are not counted, so that
# caches of before stay valid.
_NEUTRAL = {"pretraining_imbalance": 1.0}

_LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "facts": (5, 512),
    "objects": (1, len(words.OBJECTS)),
    "occupations": (2, len(words.OCCUPATIONS)),
    "pronoun_skew": (0, 1),
    "pretraining_noise": (0, 1),
    "pretraining_imbalance": (1, 1000),
    "task_classes": (2, len(words.NUMBERS)),
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
    """What a world contains and how its model is trained.

    Each knob has a random stream of its own, so turning one leaves everything else in place: more noise replaces more
    tokens and keeps those already replaced, another skew flips pronouns, more imbalance replaces more of the sentences
    about facts, more facts add to the same first ones.

    Attributes:
        seed: Seed of every stream: language, text, model initialisation, task rows.
        facts: Number of facts, "the capital of X is Y .", to be recalled word for word.
        objects: Number of objects, each with one colour: "the apple is red ."
        occupations: Number of occupations, leaning `he` and `she` in turn: "the nurse said that she was late ."
        pronoun_skew: Share of an occupation's sentences with its stereotyped pronoun; 0.5 is none.
        pretraining_noise: Share of the words of the pretraining text replaced by another word.
        pretraining_imbalance: How often the most frequent fact is said in the pretraining text over the rarest; those
            between them in equal ratios. Which fact has which place is drawn from the seed.
        task_classes: Number of answers of the counting task: zero, one, … task_classes − 1.
        task_items: Number of different countries that the task's lists are made of, at most all: learning to count
            them competes with remembering their capitals.
        list_length: Length of each list to count in; at least task_classes.
        class_imbalance: Frequency of the most frequent answer (zero) over the rarest (the largest) in training rows.
        label_noise: Share of training rows with a wrong answer.
        train_rows: Training rows of the task.
        eval_rows: Held-out rows of the task: right answers, classes balanced.
        hidden_size: Width of the Llama; a multiple of 2 × num_attention_heads.
        num_hidden_layers: Depth of the Llama.
        num_attention_heads: Attention heads of the Llama.
        pretrain_steps: Optimizer steps of pretraining, on text that never repeats.
        pretrain_batch_size: Blocks per step.
        pretrain_block_size: Tokens per block.
        pretrain_learning_rate: Peak of the cosine schedule.

    Raises:
        BALoraError: If a knob is out of its limits.
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
        check_knobs(self, _LIMITS)
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
        """Sixteen hex digits that name the world: equal knobs, equal fingerprint, on any machine."""
        return digest(self, _RECIPE_VERSION, besides=self._neutral)

    @property
    def pretraining_fingerprint(self) -> str:
        """As `fingerprint`, over what shapes the pretrained model alone: worlds that differ in their task share it."""
        return digest(self, _RECIPE_VERSION, besides=(*_TASK_FIELDS, *self._neutral))

    @property
    def _neutral(self) -> list[str]:
        return [name for name, value in _NEUTRAL.items() if getattr(self, name) == value]


def check_knobs(config: Any, limits: dict[str, tuple[float, float]]) -> None:
    """See that every knob is a number within its limits, whole where the field is.

    Raises:
        BALoraError: Naming the knob.
    """
    for field in fields(config):
        value, (low, high) = getattr(config, field.name), limits[field.name]
        kinds, noun = ((int,), "a whole number") if field.type is int else ((int, float), "a number")
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            raise BALoraError(f"{field.name} must be {noun} from {low} to {high}, not {value!r}")


def digest(config: Any, version: int, *, besides: Sequence[str] = ()) -> str:
    """Sixteen hex digits of the knobs' values, without those named.

    Args:
        config: A dataclass of numbers.
        version: Of what is made from the knobs.
        besides: Knobs that do not count.
    """
    # As floats, so that 1 and 1.0, which mean the same, are the same.
    knobs = {name: float(value) for name, value in asdict(config).items() if name not in besides}
    canonical = {"recipe_version": version, **knobs}
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:16]
