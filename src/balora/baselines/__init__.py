"""Baselines: the fine-tuning methods to compare with, by the name that a recipe gives.

Full fine-tuning and BitFit train the model's own parameters; Houlsby's and Pfeiffer's bottleneck adapters add modules;
AdaLoRA and prompt tuning are PEFT's. None has a teacher or regularizers.

    model = make_baseline(AutoModelForSequenceClassification.from_pretrained(name), "houlsby", bottleneck_size=16)

To add a baseline, write its build function in a file of this folder and give it an entry in `BASELINES`.
"""

from functools import partial
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from balora.adapters.model_checks import check_unadapted
from balora.baselines.adalora import AdaLoraCallback, make_adalora
from balora.baselines.base import Baseline
from balora.baselines.bottleneck import make_bottleneck
from balora.baselines.own_parameters import make_bitfit, make_full
from balora.baselines.prompt_tuning import make_prompt_tuning
from balora.errors import BALoraError

__all__ = ["BASELINES", "Baseline", "make_baseline"]

BASELINES: dict[str, Baseline] = {
    "full": Baseline(make_full),
    "bitfit": Baseline(make_bitfit),
    "houlsby": Baseline(partial(make_bottleneck, "houlsby")),
    "pfeiffer": Baseline(partial(make_bottleneck, "pfeiffer")),
    "adalora": Baseline(make_adalora, callbacks=(AdaLoraCallback,)),
    "prompt-tuning": Baseline(make_prompt_tuning),
}


def make_baseline(model: PreTrainedModel, method: str, **settings: Any) -> PreTrainedModel | PeftModel:
    """Return the model to train with a baseline method.

    Args:
        model: The pretrained model; changed in place.
        method: A key of `BASELINES`.
        settings: The method's settings; see `Baseline.settings`.

    Raises:
        BALoraError: If the method is unknown or does not fit the model (BitFit without biases, bottlenecks in an
            unknown architecture), or a name in `modules_to_save` or `target_modules` matches nothing, or the
            model has an adapter already.
    """
    if method not in BASELINES:
        raise BALoraError(f"method: unknown {method!r}; there are {', '.join(BASELINES)}")
    check_unadapted(model)
    return BASELINES[method].build(model, **settings)
