"""A reading world: invented films, directors, towns and countries, questions about them, and a small T5 that reads.

No pretrained T5 runs in minutes on a laptop, and what a large one could answer before fine-tuning is unknown. This one
is pretrained to answer from one sentence of a context, to go from one sentence to another in fixed wordings, and to
compare two sentences when the answer states both. Fine-tuning teaches what HotpotQA asks for: two steps in any wording
(bridge), and comparisons whose answer is the result alone (comparison).

    world = build_reading_world()
    model = AutoModelForSeq2SeqLM.from_pretrained(world.model_dir)
    rows = hotpotqa_rows(load_table(world.train_file))
"""

from balora.world.reading.build import ReadingWorld, build_reading_world
from balora.world.reading.config import ReadingConfig
from balora.world.reading.questions import make_row

__all__ = ["ReadingConfig", "ReadingWorld", "build_reading_world", "make_row"]
