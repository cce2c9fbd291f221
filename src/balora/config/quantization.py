"""Settings of a base in 4 bits."""

from typing import Any

from transformers import BitsAndBytesConfig

from balora.errors import BALoraError

#: QLoRA's settings (Dettmers et al. 2023, section 3).
QLORA: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def four_bit_settings(config: BitsAndBytesConfig | dict[str, Any]) -> dict[str, Any]:
    """Return all settings of a `BitsAndBytesConfig` for 4 bits, as JSON types.

    Raises:
        BALoraError: If one is unknown or has a wrong value, or they ask for other than 4 bits.
    """
    known = [name for name in BitsAndBytesConfig().to_dict() if not name.startswith("_")]
    if isinstance(config, dict):
        unknown = sorted(set(config) - set(known))
        if unknown:
            raise BALoraError(f"quantization_config: unknown {unknown[0]!r}; there are {', '.join(known)}")
        try:
            config = BitsAndBytesConfig(**config)
        except (TypeError, ValueError, AttributeError) as error:
            raise BALoraError(f"quantization_config: {error}") from error
    if config.quantization_method() not in ("nf4", "fp4"):
        raise BALoraError(
            "quantization_config: only 4 bits are supported; use load_in_4bit=True and bnb_4bit_quant_type 'nf4' or "
            "'fp4'"
        )
    return {name: value for name, value in config.to_dict().items() if name in known}
