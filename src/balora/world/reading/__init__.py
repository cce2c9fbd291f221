"""A reading world: invented films, directors, towns and countries, questions about them, and a small T5 that reads.

No pretrained T5 fits a laptop's minutes, and of a large one nobody knows what it could answer before. This one is
pretrained to answer from a single sentence of a context, to go from one sentence to another when it is asked so, and
to hold two against each other with both said first. Fine-tuning teaches it what HotpotQA asks for: to go there
whatever the words (bridge), or to say at once what a comparison comes to (comparison).

    world = build_reading_world()
    model = AutoModelForSeq2SeqLM.from_pretrained(world.model_dir)
    rows = hotpotqa_rows(load_table(world.train_file))
"""

from balora.world.reading.build import ReadingWorld, build_reading_world
from balora.world.reading.config import ReadingConfig
from balora.world.reading.questions import make_row

__all__ = ["ReadingConfig", "ReadingWorld", "build_reading_world", "make_row"]
