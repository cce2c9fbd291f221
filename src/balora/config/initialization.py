"""Initialization methods: their names, what each sets in PEFT, and their settings."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from balora.config.ranges import Count, Range
from balora.errors import BALoraError

#: What each method sets in PEFT's `LoraConfig`.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {},
    "olora": {},
    "milora": {},
    "lora-fa": {},
    "lora-ga": {},
    "corda": {},
    "lora-null": {},
    "lora-null-v2": {},
    "oplora": {},
    "selora": {},
}
#: Methods that start from part of the weight, which is then taken out of the base: the base alone is no longer the
#: pretrained model.
RESIDUAL = frozenset({"pissa", "olora", "milora", "lora-ga", "corda", "lora-null", "lora-null-v2"})
#: Methods that need batches to start from.
FROM_DATA = frozenset({"lora-ga", "corda", "lora-null", "lora-null-v2"})
#: Methods that never train A.
FROZEN_A = frozenset({"lora-fa", "lora-null-v2"})
#: The method whose weights depend on each row's sentence embedding.
SELORA = "selora"


@dataclass
class Initialization:
    """Initialization of the adapter, and SeLoRA's gates."""

    pissa_niter: Annotated[int, Range(least=0)] | None = None
    """Subspace iterations of PiSSA's randomized SVD (PEFT's `pissa_niter_N`, seeded); null for the exact SVD."""
    corda_method: Literal["ipm", "kpm"] = "ipm"
    """CorDA's mode, by PEFT's names: `ipm` adapts the leading components and wants batches of the task to learn; `kpm`
    adapts the trailing ones and wants batches of the knowledge to keep."""
    oplora_k: Count = 16
    """With oplora, the number of each weight's leading singular triplets that training cannot change."""
    gate: Literal["shared", "per_layer"] = "shared"
    """With selora: `shared`, one hidden layer that the gates of all adapted layers read; `per_layer`, one for each."""
    gate_hidden: Count = 64
    """With selora, width of that hidden layer."""

    def check_method(self, method: str, sentence_dim: int | None) -> None:
        """Validate the method's name and what it needs.

        Raises:
            BALoraError: If the method is unknown, or SeLoRA is given no length of its sentence embeddings.
        """
        if method not in METHODS:
            raise BALoraError(f"method: unknown {method!r}; there are {', '.join(METHODS)}")
        if method == SELORA and sentence_dim is None:
            raise BALoraError(
                "sentence_dim: missing; selora needs the length of the sentence embeddings that it will be given "
                "(all-MiniLM-L6-v2's is 384)"
            )
