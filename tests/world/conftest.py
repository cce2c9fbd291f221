"""A world small enough to build in a test, built once."""

import pytest

from balora.world import World, WorldConfig, build_world
from balora.world.language import make_language, make_tokenizer

TINY = {
    **{"facts": 6, "objects": 8, "occupations": 4, "train_rows": 200, "eval_rows": 50},
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"pretrain_steps": 5, "pretrain_batch_size": 4},
}


@pytest.fixture(scope="session")
def tiny() -> dict[str, int]:
    return dict(TINY)


@pytest.fixture(scope="session")
def world_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="session")
def tiny_world(world_cache) -> World:
    return build_world(WorldConfig(**TINY), world_cache)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return make_tokenizer(make_language(WorldConfig(**TINY)))
