"""Published settings: what the papers print for a task, and whole methods by name."""

from typing import Any

from peft import TaskType

#: Settings printed in the BA-LoRA paper: generation from its section 4.1 (Llama-2-7B), classification from GLUE.
_GENERATION: dict[str, Any] = {
    "consistency_weight": 0.025,
    "diversity_weight": 0.005,
    "spectral_weight": 0.005,
    "spectral_k": 10,
    "consistency_schedule": "cosine",
    "diversity_schedule": "two_phase",
    "spectral_schedule": "two_phase",
}
PUBLISHED: dict[str, dict[str, Any]] = {
    TaskType.CAUSAL_LM: _GENERATION,
    TaskType.SEQ_2_SEQ_LM: _GENERATION,
    TaskType.SEQ_CLS: {
        "consistency_weight": 0.15,
        "diversity_weight": 0.03,
        "spectral_weight": 0.03,
        "spectral_k": 5,
        "diversity_loss": "covariance",
        "consistency_schedule": "constant",
        "diversity_schedule": "constant",
        "spectral_schedule": "constant",
    },
}

#: λ of the self-anchors of `+anchors`.
ANCHOR_WEIGHT = 1.0
#: Words whose exchange the teacher of `+swaps` is averaged over, a list of `balora.counterfactual.WORD_LISTS`.
SWAPPED_WORDS = "gender"
#: LoRA with a term of its own, and none of BA-LoRA's.
_OTHER_TERM = {"method": "lora+reg", "consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0}
#: LoRA with a divergence from the teacher at temperature 1.
_DIVERGENCE = {**_OTHER_TERM, "consistency_schedule": "constant", "temperature": 1.0}
#: From the pretrained model on the labelled tokens, with the weight of ASFT's authors.
_KL = {**_DIVERGENCE, "consistency_weight": 0.05, "regularized_tokens": "labelled"}

#: Whole methods: settings of `BALoraConfig` beside r, targets and, for `se-lora`, `sentence_dim`. `structural` is
#: structural regularization with a bias path; no weight of it is published, and these are balora's
#: (`docs/decisions/bias-path.md`). The last six are rivals (`docs/decisions/rivals.md`).
PRESETS: dict[str, dict[str, Any]] = {
    "ba-lora": {"method": "ba-lora"},
    "se-lora": {"method": "selora"},
    "structural": {
        "method": "lora+reg",
        "consistency_direction": "reverse",
        "temperature": 1.0,
        "consistency_weight": 0.1,
        "consistency_schedule": "constant",
        "diversity_weight": 0.0,
        "spectral_weight": 0.0,
        "bias_path_weight": 10.0,
        "bias_path_mode": "adversarial",
    },
    "dft": {"method": "lora", "task_loss": "dft"},
    "asft": {**_KL, "task_loss": "dft"},
    "sft+kl": _KL,
    "ewc": {**_OTHER_TERM, "ewc_weight": 1.0},
    "self-replay": {**_OTHER_TERM, "replay_weight": 1.0},
    "role-reversal": {**_DIVERGENCE, "method": "lora+reg+swaps", "consistency_weight": 1.0},
}
