"""Settings of the adapter: its method, its size, and what single methods need."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from peft import LoraConfig

from balora.config.ranges import Count, Range, Share
from balora.errors import BALoraError
from balora.recipe.paths import RecipePath

#: Fields of PEFT's LoraConfig that a recipe may not set, and why.
REFUSED = {
    "init_lora_weights": "`method` says how the adapter starts",
    "inference_mode": "it would freeze the adapter",
    "eva_config": "no method starts as EVA",
    "loftq_config": "no method starts as LoftQ",
    "corda_config": "set corda_method",
}


@dataclass
class Adapter:
    """The adapter: method, size, targets."""

    method: str = "ba-lora"
    """Method that `balora train` trains: lora, rslora, dora, pissa, olora, milora, lora-fa, lora-ga, corda, lora-null,
    lora-null-v2, oplora; the same with `+reg` for the regularizers, ba-lora being PiSSA with them; lora+; selora,
    selora+reg; on a base in 4 bits qlora, qdora, qlora+reg, qdora+reg, qpissa, qba-lora; after any of these `+anchors`
    for self-anchors and `+swaps` for the counterfactual teacher; structural; dft, asft, sft+kl, ewc, self-replay,
    sdft, cda, role-reversal; full, bitfit, houlsby, pfeiffer, adalora, prompt-tuning."""
    r: Count = 16
    """Rank of the adapter."""
    lora_alpha: Count | None = None
    """Scaling is lora_alpha / r; null for r, so that it is 1 at every rank."""
    lora_dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Dropout on the adapter's input."""
    target_modules: list[str] | str | None = "all-linear"
    """Module names, or all-linear; null for PEFT's default for the model."""
    target_parameters: list[str] | None = None
    """Names of parameters to adapt too: a mixture's experts (`[experts.gate_up_proj, experts.down_proj]`), which
    Transformers keeps in one parameter each."""
    modules_to_save: list[str] | None = None
    """Modules trained in full beside the adapter."""
    adapter_arguments: dict[str, Any] = field(default_factory=dict)
    """Further fields of PEFT's LoraConfig (`{layers_to_transform: [0, 1], rank_pattern: {q_proj: 4}}`)."""
    sentence_encoder: RecipePath | None = None
    """Folder, Hub name or `package:` of a sentence-transformers model, whose embeddings gate selora and compare
    answers (semsim). null for the mean of the model's own input embeddings, and no semsim."""
    num_virtual_tokens: Count = 20
    """Length of prompt-tuning's prompt."""
    bottleneck_size: Count = 16
    """Width of the houlsby and pfeiffer adapters."""
    start_batches: Count = 8
    """Batches that lora-ga, corda and lora-null start from, of training rows or of the texts in knowledge_file; and
    batches of those texts that ewc_weight protects."""
    knowledge_file: RecipePath | None = None
    """Texts of what the model should keep: a file with a column `text`, or `anchors` for texts that it generates
    itself (as for `+anchors`). lora-null, and corda in mode kpm, start from them; ewc protects them."""
    loraplus_lr_ratio: float = 16.0
    """With lora+, B's learning rate over A's."""
    quantization_config: dict[str, Any] = field(default_factory=dict)
    """Settings of Transformers' BitsAndBytesConfig, for methods in 4 bits; what is left out is QLoRA's: NF4, double
    quantization, computed in the precision that training runs in."""
    wise_ft: Share | None = None
    """After training, average the weights with the pretrained ones: this share of the trained (WiSE-FT's α), the rest
    of the pretrained. null leaves the trained weights."""
    after_training: dict[str, float] = field(default_factory=dict)
    """After training (and wise_ft), change what was learned by one of: `{intruders: 0.5}` scales intruder dimensions
    by this, `{trim: 0.2}` keeps this share of each matrix's entries, the largest, `{dare: 0.5}` keeps a random share
    and rescales it. The last two save an adapter of full rank."""

    def check_adapter(self) -> None:
        """Validate the further arguments of PEFT's configuration.

        Raises:
            BALoraError: If one is unknown, or is a recipe key by its own name.
        """
        known = {f.name for f in fields(LoraConfig) if f.init}
        own = {f.name for f in fields(self)}
        for key in self.adapter_arguments:
            if key in own:
                raise BALoraError(f"adapter_arguments: {key!r} is a recipe key; set it at the top level")
            if key not in known:
                raise BALoraError(f"adapter_arguments: unknown {key!r}; it takes fields of PEFT's LoraConfig")
            if key in REFUSED:
                raise BALoraError(f"adapter_arguments: {key} cannot be set: {REFUSED[key]}; leave it out")
