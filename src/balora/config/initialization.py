"""Initializations of the adapter: their names, what each sets in PEFT, and their settings."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from balora.config.ranges import Count, Range

#: What each initialization sets in PEFT's `LoraConfig`.
INITIALIZATIONS: dict[str, dict[str, Any]] = {
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
#: Those that start from part of the weight, which is then taken out of the base: the base alone is no longer the
#: pretrained model.
RESIDUAL = frozenset({"pissa", "olora", "milora", "lora-ga", "corda", "lora-null", "lora-null-v2"})
#: Those that need batches to start from.
FROM_DATA = frozenset({"lora-ga", "corda", "lora-null", "lora-null-v2"})
#: Those that never train A.
FROZEN_A = frozenset({"lora-fa", "lora-null-v2"})
#: The one whose weights depend on each row's sentence embedding.
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
