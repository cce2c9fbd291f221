"""The methods that a recipe can name: balora's low-rank methods, with and without regularizers, and baselines."""

from dataclasses import dataclass
from typing import Any

from balora.baselines import BASELINES
from balora.config import FROM_DATA, METHODS, SELORA
from balora.config.published import PRESETS

#: `knowledge_file` for the texts of the self-anchors.
ANCHORS = "anchors"


@dataclass(frozen=True)
class RunMethod:
    """A low-rank method of balora's, as a recipe names it.

    Attributes:
        start: Initialization of the adapter: `BALoraConfig.method`.
        regularized: Whether the regularizers are on.
        four_bit: Whether the base is in 4 bits.
        loraplus: Whether the optimizer is LoRA+'s, with a higher learning rate for B.
    """

    start: str
    regularized: bool = False
    four_bit: bool = False
    loraplus: bool = False

    @property
    def gated(self) -> bool:
        """Whether each row's sentence vector gates the adapter (SeLoRA)."""
        return self.start == SELORA

    @property
    def from_data(self) -> bool:
        """Whether the adapter is initialized from batches of training rows, or of other texts."""
        return self.start in FROM_DATA

    @property
    def from_inputs(self) -> bool:
        """Whether the initialization reads inputs without labels, so that any texts will do."""
        return self.from_data and self.start != "lora-ga"


#: In 4 bits, by the names in the literature: QLoRA (Dettmers et al. 2023), QDoRA, QPiSSA (Meng et al. 2024).
FOUR_BIT = ("lora", "dora", "pissa")

RUN_METHODS: dict[str, RunMethod] = {
    **{name: RunMethod(name) for name in METHODS},
    **{f"{name}+reg": RunMethod(name, regularized=True) for name in METHODS if name != "pissa"},
    "ba-lora": RunMethod("pissa", regularized=True),
    "lora+": RunMethod("lora", loraplus=True),
    **{f"q{name}": RunMethod(name, four_bit=True) for name in FOUR_BIT},
    **{f"q{name}+reg": RunMethod(name, regularized=True, four_bit=True) for name in FOUR_BIT if name != "pissa"},
    "qba-lora": RunMethod("pissa", regularized=True, four_bit=True),
}
#: Whole methods that are another one with settings, which a recipe's `method_settings` may change.
RUN_PRESETS: dict[str, dict[str, Any]] = {
    name: {**PRESETS[name], "method": "lora+reg"}
    for name in ("structural", "dft", "asft", "sft+kl", "ewc", "self-replay", "role-reversal")
}
RUN_PRESETS["role-reversal"]["swapped_rows"] = "gender"
RUN_PRESETS["sdft"] = {"method": "lora", "rewrite_answers": True}
RUN_PRESETS["cda"] = {"method": "lora", "swapped_rows": "gender"}
#: Methods to compare with.
BASELINE_METHODS = tuple(BASELINES)
