"""Build a reading world once, as ordinary files in a cache, written atomically.

reading-<fingerprint>/
    reading.json         the settings
    model/               the pretrained T5 and its tokenizer, as `from_pretrained` reads them
    train.jsonl          bridge and comparison questions, in the schema of HotpotQA on the Hub
    eval.jsonl           the same, held out
    single.jsonl         held-out questions of the kind that the model was pretrained on: one sentence answers them
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import TrainerCallback

from balora.utils.files import cache_folder, write_directory, write_jsonl
from balora.world.reading.config import ReadingConfig
from balora.world.reading.pretrain import pretrain
from balora.world.reading.questions import make_row

#: Number of questions that measure what the model can read before fine-tuning.
SINGLE_ROWS = 400


@dataclass(frozen=True)
class ReadingWorld:
    """A built reading world: its settings and its files.

    Attributes:
        directory: The world's directory.
        config: The settings it was built with.
    """

    directory: Path
    config: ReadingConfig

    @property
    def model_dir(self) -> Path:
        """The pretrained model and its tokenizer, for `from_pretrained`."""
        return self.directory / "model"

    @property
    def train_file(self) -> Path:
        """Training questions."""
        return self.directory / "train.jsonl"

    @property
    def eval_file(self) -> Path:
        """Held-out questions of the same types."""
        return self.directory / "eval.jsonl"

    @property
    def single_file(self) -> Path:
        """Held-out questions that the pretrained model can answer."""
        return self.directory / "single.jsonl"


def build_reading_world(
    config: ReadingConfig | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> ReadingWorld:
    """Return the reading world with these settings; build it on the first call.

    Args:
        config: The settings; default: `ReadingConfig()`.
        cache_dir: The cache folder; default: the environment's `BALORA_CACHE`, or else `~/.cache/balora`.
        callbacks: Callbacks of the pretraining's trainer, to show progress.

    Raises:
        BALoraError: If the cache directory cannot be written.
    """
    config = config or ReadingConfig()
    cache = cache_folder(cache_dir)
    pretrained_dir = cache / f"reading-pretrained-{config.pretraining_fingerprint}"
    world = ReadingWorld(cache / f"reading-{config.fingerprint}", config)
    if not world.directory.is_dir():
        write_directory(pretrained_dir, lambda directory: pretrain(config, directory, callbacks))
        write_directory(
            world.directory, lambda directory: _write_files(ReadingWorld(directory, config), pretrained_dir)
        )
    return world


def _write_files(world: ReadingWorld, pretrained_dir: Path) -> None:
    config = world.config
    (world.directory / "reading.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    shutil.copytree(pretrained_dir, world.model_dir)
    write_jsonl(world.train_file, (make_row(config, "train", i) for i in range(config.train_rows)))
    write_jsonl(world.eval_file, (make_row(config, "eval", i) for i in range(config.eval_rows)))
    write_jsonl(world.single_file, (make_row(config, "single", i) for i in range(SINGLE_ROWS)))
