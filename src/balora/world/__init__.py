"""The controlled world: a configurable small language, a small Llama pretrained on it, and measures of its knowledge.

Fine-tuning real models takes hours, and what they knew before is not exactly known. Here all facts are known,
pretraining takes about a minute on two cores and fine-tuning less, so what a method keeps, forgets and skews can be
measured directly. A world is ordinary files (see `build`): a model directory and JSONL rows.

    world = build_world(WorldConfig(label_noise=0.2))
    model = AutoModelForCausalLM.from_pretrained(world.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(world.model_dir)
    measure_world(model, tokenizer, world)
"""

from balora.world.build import World, build_world
from balora.world.config import WorldConfig
from balora.world.measure import measure_world, next_token_log_probs, perplexity, pronoun_skew, recall

__all__ = [
    "World",
    "WorldConfig",
    "build_world",
    "measure_world",
    "next_token_log_probs",
    "perplexity",
    "pronoun_skew",
    "recall",
]
