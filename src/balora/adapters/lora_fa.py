"""LoRA-FA: A stays as it was drawn and B alone trains, so that a layer keeps no input for the backward pass."""

from peft.tuners.lora import LoraLayer

from balora.errors import BALoraError


def freeze_down_projections(layers: dict[str, LoraLayer], adapter_name: str) -> None:
    """Freeze every A of an adapter (LoRA-FA, Zhang et al. 2023): changes of W then stay in the row space of A.

    PEFT's `set_adapter` sets A to train again; whoever calls it calls this after.

    Args:
        layers: The adapted layers by name.
        adapter_name: The adapter.

    Raises:
        BALoraError: If a layer is an embedding, whose A starts at zero, so that a B alone could learn nothing.
    """
    for name, layer in layers.items():
        if adapter_name not in layer.lora_A:
            raise BALoraError(
                f"target_modules: {name} is a {type(layer.get_base_layer()).__name__}, whose A starts at zero, and "
                "lora-fa never moves it; leave it out or use method='lora'"
            )
        layer.lora_A[adapter_name].requires_grad_(False)
