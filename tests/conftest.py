"""Settings and fixtures of all tests: folders of real data, no network, one thread."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny models gain nothing from a second thread, and threads of two busy workers slow each other down. Set in the
# environment so that subprocesses inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings
from shared_paths import DATA, MODELS

# A time limit for each example would fail on a busy machine; their number bounds the time of a test instead.
settings.register_profile("balora", deadline=None, max_examples=60)
settings.load_profile("balora")


def existing(path: Path, variable: str) -> Path:
    if not path.is_dir():
        pytest.skip(f"{path} is absent: set {variable} to the folder that the tests read real files from")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return existing(DATA, "BALORA_DATA")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    return existing(MODELS, "BALORA_MODELS")
