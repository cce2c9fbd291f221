"""The methods that can be trained, by the names that tables show."""

from dataclasses import dataclass
from typing import Any

from balora.config import METHODS
from balora.config.published import PRESETS


@dataclass(frozen=True)
class RunMethod:
    """A low-rank method of balora by its name in recipes.

    Attributes:
        start: Initialization of the adapter: `BALoraConfig.method`.
        regularized: Whether the regularizers are on.
        four_bit: Whether the base is in 4 bits.
    """

    start: str
    regularized: bool = False
    four_bit: bool = False


#: In 4 bits, by the names in the literature: QLoRA (Dettmers et al. 2023), QDoRA, QPiSSA (Meng et al. 2024).
FOUR_BIT = ("lora", "dora", "pissa")

RUN_METHODS: dict[str, RunMethod] = {
    **{name: RunMethod(name) for name in METHODS},
    **{f"{name}+reg": RunMethod(name, regularized=True) for name in METHODS if name != "pissa"},
    "ba-lora": RunMethod("pissa", regularized=True),
    "lora+": RunMethod("lora"),
    **{f"q{name}": RunMethod(name, four_bit=True) for name in FOUR_BIT},
    **{f"q{name}+reg": RunMethod(name, regularized=True, four_bit=True) for name in FOUR_BIT if name != "pissa"},
    "qba-lora": RunMethod("pissa", regularized=True, four_bit=True),
}
#: Whole methods that are another one with settings, which a recipe's `method_settings` may change.
RUN_PRESETS: dict[str, dict[str, Any]] = {"structural": {**PRESETS["structural"], "method": "lora+reg"}}
#: Methods to compare with, without regularizers.
RIVAL_METHODS = ("full", "bitfit", "houlsby", "pfeiffer", "adalora", "prompt-tuning")
