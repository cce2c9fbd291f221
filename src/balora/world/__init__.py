"""The controlled world: a small language with knobs, a small Llama pretrained on it, and measures of what it knows.

Fine-tuning real models takes hours and leaves open what they knew beforehand. Here everything that is true is known,
pretraining takes about a minute on two cores, and fine-tuning well under one, so what a method keeps, loses and skews
can be read off directly. A world is ordinary files (see `build`): a model directory and JSONL rows.

    world = build_world(WorldConfig(label_noise=0.2))
    model = AutoModelForCausalLM.from_pretrained(world.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(world.model_dir)
    measure_world(model, tokenizer, world)
"""

from balora.world.build import World, build_world, load_world
from balora.world.config import WorldConfig
from balora.world.measure import measure_world, next_token_log_probs, perplexity, pronoun_skew, recall

__all__ = [
    "World",
    "WorldConfig",
    "build_world",
    "load_world",
    "measure_world",
    "next_token_log_probs",
    "perplexity",
    "pronoun_skew",
    "recall",
]
