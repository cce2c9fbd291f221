"""The fine-tuning task: count a country in a list.

"count matia : nosia matia bemia matia ladia =>" → " two". The words are known from pretraining, the format is new, and
the pretrained model fails at it. Row i is a function of the seed, the split and i, as in `language`.
"""

import zlib
from collections.abc import Iterator
from random import Random
from typing import Literal

from balora.world import vocabulary
from balora.world.config import WorldConfig
from balora.world.language import Language

# The share of all prompts that only evaluation uses.
_HELD_OUT = 0.2


def make_rows(config: WorldConfig, language: Language, split: Literal["train", "eval"]) -> list[dict[str, str]]:
    """Return rows of the task, `{"prompt": …, "completion": …}`; no prompt is in both splits.

    Training answers are drawn with geometric class weights w_c = class_imbalance^(−c / (task_classes − 1)); a share
    `label_noise` of them is then replaced by a wrong one. Evaluation answers are right and cycle through the classes.
    """
    if split == "train":
        return [_make_train_row(config, language, index) for index in range(config.train_rows)]
    return [_make_eval_row(config, language, index) for index in range(config.eval_rows)]


def rarest_answer(config: WorldConfig) -> str:
    """Return the completion of the rarest class: the largest count."""
    return _completion(config.task_classes - 1)


def _make_train_row(config: WorldConfig, language: Language, index: int) -> dict[str, str]:
    draw = Random(f"{config.seed}/train/{index}")
    classes = range(config.task_classes)
    weights = [config.class_imbalance ** (-c / (config.task_classes - 1)) for c in classes]
    (answer,) = draw.choices(classes, weights)
    is_wrong = draw.random() < config.label_noise
    wrong_answer = (answer + draw.randrange(1, config.task_classes)) % config.task_classes
    prompt = next(p for p in _prompts(config, language, answer, draw) if not _is_held_out(p))
    return {"prompt": prompt, "completion": _completion(wrong_answer if is_wrong else answer)}


def _make_eval_row(config: WorldConfig, language: Language, index: int) -> dict[str, str]:
    draw = Random(f"{config.seed}/eval/{index}")
    answer = index % config.task_classes
    prompt = next(p for p in _prompts(config, language, answer, draw) if _is_held_out(p))
    return {"prompt": prompt, "completion": _completion(answer)}


def _prompts(config: WorldConfig, language: Language, answer: int, draw: Random) -> Iterator[str]:
    """Yield prompts with this answer, endlessly. The draws do not depend on the answer, so rows keep their words."""
    countries = [country for country, _ in language.capitals[: config.task_items]]
    while True:
        target = draw.choice(countries)
        others = [country for country in countries if country != target]
        items = draw.choices(others, k=config.list_length)
        for position in draw.sample(range(config.list_length), config.list_length)[:answer]:
            items[position] = target
        yield f"count {target} : {' '.join(items)} =>"


def _is_held_out(prompt: str) -> bool:
    return zlib.crc32(prompt.encode()) < _HELD_OUT * 2**32


def _completion(answer: int) -> str:
    return f" {vocabulary.NUMBERS[answer]}"
