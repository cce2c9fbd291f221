"""Rivals: the fine-tuning methods to compare with that are not ours.

Full fine-tuning and BitFit train the model's own parameters; bottleneck adapters add modules. What they give back is
the Transformers model itself, for any trainer: no teacher, no regularizers. AdaLoRA and prompt
tuning are PEFT's, the former with its schedule kept.

    model = make_rival(AutoModelForSequenceClassification.from_pretrained(name), "houlsby", bottleneck_size=16)
"""

from balora.baselines.adalora import AdaLoraCallback, make_adalora
from balora.baselines.bottleneck import BottleneckAdapter, add_bottlenecks
from balora.baselines.build import RIVALS, make_rival, trainable_parameters
from balora.baselines.prompt_tuning import make_prompt_tuning
from balora.baselines.whole import freeze_but, task_heads, train_all, train_biases

__all__ = [
    "RIVALS",
    "AdaLoraCallback",
    "BottleneckAdapter",
    "add_bottlenecks",
    "freeze_but",
    "make_adalora",
    "make_prompt_tuning",
    "make_rival",
    "task_heads",
    "train_all",
    "train_biases",
    "trainable_parameters",
]
