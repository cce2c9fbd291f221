"""The methods that a recipe can name beside balora's own (`balora.config.methods`): presets and baselines."""

from typing import Any

from balora.baselines import BASELINES
from balora.config import METHODS
from balora.config.published import PRESETS

#: `knowledge_file` for the texts of the self-anchors.
ANCHORS = "anchors"
#: balora's low-rank methods; `+anchors` and `+swaps` may follow each name.
RUN_METHODS = METHODS
#: Whole methods that are another one with settings, which a recipe's `method_settings` may change.
RUN_PRESETS: dict[str, dict[str, Any]] = {
    **{name: PRESETS[name] for name in ("structural", "dft", "asft", "sft+kl", "ewc", "self-replay")},
    "role-reversal": {**PRESETS["role-reversal"], "swapped_rows": "gender"},
    "sdft": {"method": "lora", "rewrite_answers": True},
    "cda": {"method": "lora", "swapped_rows": "gender"},
}
#: Methods to compare with.
BASELINE_METHODS = tuple(BASELINES)
