"""Settings of the base model."""

from dataclasses import dataclass
from typing import Literal

from balora.errors import BALoraError
from balora.recipe.paths import RecipePath
from balora.world import WorldConfig
from balora.world.reading import ReadingConfig


@dataclass
class Model:
    """The base model."""

    model_name_or_path: RecipePath | None = None
    """Hub name, local folder, or `package:NAME/folder` for a folder inside a Python package; or a GGUF file: its path,
    `package:NAME/file.gguf`, or `owner/repository/file.gguf` on the Hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision the base model is loaded in."""
    attn_implementation: str | None = None
    """Attention implementation by Transformers' name, such as sdpa, eager or flash_attention_2; null for its
    choice."""
    use_safetensors: bool = True
    """Refuse weights that are pickles (`pytorch_model.bin`); false reads only those, and only tensors from them. A
    model's own code is never run."""
    task_type: Literal["CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM"] | None = None
    """CAUSAL_LM, SEQ_CLS or SEQ_2_SEQ_LM (T5), which generates classes as text; null means SEQ_CLS when label_column
    or glue_task is given, else CAUSAL_LM."""
    chat_template_path: RecipePath | None = None
    """Jinja file of a chat template, instead of the tokenizer's; null for its own."""
    world: WorldConfig | None = None
    """Parameters of the controlled world, which brings its own model and data; `{}` for its defaults."""
    reading_world: ReadingConfig | None = None
    """Parameters of the reading world, which brings its own model and questions; `{}` for its defaults."""

    def check_model(self) -> None:
        """Validate that at most one world is named.

        Raises:
            BALoraError: If both are.
        """
        if self.reading_world is not None and self.world is not None:
            raise BALoraError("world, reading_world: each brings a model of its own; give one of the two")
