"""Build a world once, as ordinary files in a cache, written atomically.

world-<fingerprint>/
    world.json           the settings
    model/               the pretrained model and its tokenizer, as `from_pretrained` reads them
    train.jsonl          the task, `{"prompt", "completion"}`: some answers wrong, see `label_noise`
    eval.jsonl           the task on held-out prompts, answers right
    heldout.jsonl        text of the pretraining language, `{"text"}`, without noise and with equally frequent facts
    pretraining.jsonl    the beginning of the pretraining text, `{"text"}`, including noise
    facts.jsonl          `{"prompt": "the capital of X is", "completion": " Y"}`
    attributes.jsonl     `{"prompt": "the apple is", "completion": " red"}`
    occupations.jsonl    `{"prompt": "the nurse said that", "completion": " she"}`, the stereotyped pronoun
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import TrainerCallback

from balora.utils.files import cache_folder, write_directory, write_jsonl
from balora.world.config import WorldConfig
from balora.world.language import (
    capital_prompt,
    colour_prompt,
    make_language,
    make_line,
    make_tokenizer,
    occupation_prompt,
)
from balora.world.pretrain import pretrain, pretraining_texts
from balora.world.task import make_rows

_HELD_OUT_LINES = 400
_PRETRAINING_LINES = 9600


@dataclass(frozen=True)
class World:
    """A built world: its settings and its files.

    Attributes:
        directory: The world's directory.
        config: The settings it was built with.
    """

    directory: Path
    config: WorldConfig

    @property
    def model_dir(self) -> Path:
        """The pretrained model and its tokenizer, for `from_pretrained`."""
        return self.directory / "model"

    @property
    def train_file(self) -> Path:
        """The task's training rows."""
        return self.directory / "train.jsonl"

    @property
    def eval_file(self) -> Path:
        """The task's held-out rows."""
        return self.directory / "eval.jsonl"

    @property
    def heldout_file(self) -> Path:
        """Held-out text of the pretraining language."""
        return self.directory / "heldout.jsonl"

    @property
    def pretraining_file(self) -> Path:
        """Text from the model's pretraining."""
        return self.directory / "pretraining.jsonl"

    @property
    def facts_file(self) -> Path:
        """One prompt per fact, and its capital."""
        return self.directory / "facts.jsonl"

    @property
    def attributes_file(self) -> Path:
        """One prompt per object, and its colour."""
        return self.directory / "attributes.jsonl"

    @property
    def occupations_file(self) -> Path:
        """One prompt per occupation, and its stereotyped pronoun."""
        return self.directory / "occupations.jsonl"


def build_world(
    config: WorldConfig | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> World:
    """Return the world with these settings; build it on the first call.

    Pretraining takes about a minute on two cores at the default size. It is cached separately from the task, so worlds
    that differ only in their task share it. Processes that build the same world at the same time duplicate work but do
    not conflict.

    Args:
        config: The settings; default: `WorldConfig()`.
        cache_dir: The cache folder; default: the environment's `BALORA_CACHE`, or else `~/.cache/balora`.
        callbacks: Callbacks of the pretraining's trainer, to show progress.

    Raises:
        BALoraError: If the cache directory cannot be written.
    """
    config = config or WorldConfig()
    cache = cache_folder(cache_dir)
    pretrained_dir = cache / f"pretrained-{config.pretraining_fingerprint}"
    world = World(cache / f"world-{config.fingerprint}", config)
    if not world.directory.is_dir():
        write_directory(pretrained_dir, lambda directory: pretrain(config, directory, callbacks))
        write_directory(world.directory, lambda directory: _write_files(World(directory, config), pretrained_dir))
    if not world.pretraining_file.exists():  # built by an older version, without this file
        _write_pretraining_text(world)
    return world


def _write_files(world: World, pretrained_dir: Path) -> None:
    language = make_language(world.config)
    (world.directory / "world.json").write_text(json.dumps(asdict(world.config), indent=2) + "\n")
    shutil.copytree(pretrained_dir, world.model_dir)
    write_jsonl(world.train_file, make_rows(world.config, language, "train"))
    write_jsonl(world.eval_file, make_rows(world.config, language, "eval"))
    write_jsonl(world.heldout_file, ({"text": make_line(language, "heldout", i)} for i in range(_HELD_OUT_LINES)))
    _write_pretraining_text(world)
    write_jsonl(world.facts_file, (_row(capital_prompt(country), city) for country, city in language.capitals))
    write_jsonl(world.attributes_file, (_row(colour_prompt(thing), colour) for thing, colour in language.colours))
    write_jsonl(world.occupations_file, (_row(occupation_prompt(who), lean) for who, lean in language.occupations))


def _write_pretraining_text(world: World) -> None:
    """Write the file atomically, since other processes may be reading this world."""
    language = make_language(world.config)
    texts = pretraining_texts(world.config, language, make_tokenizer(language), _PRETRAINING_LINES)
    write_jsonl(world.pretraining_file, ({"text": text} for text in texts))


def _row(prompt: str, word: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": f" {word}"}
