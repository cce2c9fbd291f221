"""Building a world once: ordinary files in a cache, written whole or not at all.

world-<fingerprint>/
    world.json           the knobs
    model/               the pretrained model and its tokenizer, as `from_pretrained` reads them
    train.jsonl          the task, `{"prompt", "completion"}`: some answers wrong, see `label_noise`
    eval.jsonl           the task on held-out prompts, answers right
    heldout.jsonl        text of the pretraining language, `{"text"}`, without noise and with all facts as frequent
    pretraining.jsonl    what the model was pretrained on, the first of it, `{"text"}`: noise and all
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

from balora.errors import BALoraError
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
    """A built world: its knobs and where its files lie.

    Attributes:
        directory: The world's own directory.
        config: The knobs it was built with.
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
        """Text that the model was pretrained on."""
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
    """Return the world with these knobs, building it on the first call.

    Pretraining takes about a minute on two cores at the default size. It is cached apart from the task, so worlds that
    differ only in their task share it. Processes that build the same world at once waste work and harm nothing.

    Args:
        config: The knobs; all at their defaults if left out.
        cache_dir: Where worlds are kept; left out, the environment's `BALORA_CACHE`, else `~/.cache/balora`.
        callbacks: Given to the pretraining's trainer, to show progress.

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
    if not world.pretraining_file.exists():  # a world that was built before there was this file
        _write_pretraining_text(world)
    return world


def load_world(directory: str | os.PathLike[str]) -> World:
    """Read back a world, wherever its directory has been moved to.

    Raises:
        BALoraError: If the directory does not hold a world.
    """
    knobs_file = Path(directory) / "world.json"
    if not knobs_file.is_file():
        raise BALoraError(f"{directory} is not a world: it has no world.json; build one with build_world")
    return World(Path(directory), WorldConfig(**json.loads(knobs_file.read_text())))


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
    """All at once, since processes may read this world already."""
    language = make_language(world.config)
    texts = pretraining_texts(world.config, language, make_tokenizer(language), _PRETRAINING_LINES)
    write_jsonl(world.pretraining_file, ({"text": text} for text in texts))


def _row(prompt: str, word: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": f" {word}"}
