"""SeLoRA's sentence embeddings in a study: the encoder, and the texts that it encodes."""

from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from balora.data import add_sentence_embeds, input_embedding_encoder
from balora.data.sentences import SentenceEncoder, embed_texts
from balora.errors import BALoraError
from balora.model.base import BALoraModel
from balora.study.model_and_data import ModelAndData
from balora.utils.files import cache_folder

#: Columns with the input of a row without its answer, the first present one is used; `text` only next to a label.
ASKING = ("question", "prompt", "text")


def encoder_of(prepared: ModelAndData, model: PreTrainedModel) -> SentenceEncoder:
    """Return the recipe's sentence encoder, by default the model's input embeddings."""
    return prepared.encoder or input_embedding_encoder(model, prepared.tokenizer)


def sentence_dim(prepared: ModelAndData, model: PreTrainedModel) -> int:
    """Return the dimension of the encoder's embeddings."""
    return encoder_of(prepared, model)(["."]).shape[1]


def with_sentences(
    prepared: ModelAndData, model: PreTrainedModel | PeftModel, rows: Dataset, tokens: Dataset
) -> Dataset:
    """Add the sentence embeddings of `rows` to `tokens`, the same N rows tokenized; no-op for other methods."""
    if not is_gated(model):
        return tokens
    encoder = encoder_of(prepared, model)
    return add_sentence_embeds(tokens, sentences_of(rows), encoder, cache_dir=_cache())


def sentence_vectors(prepared: ModelAndData, model: PreTrainedModel | PeftModel, rows: Dataset) -> Tensor | None:
    """Return the sentence embeddings of `rows`, `(N, d)`; `None` for other methods."""
    if not is_gated(model):
        return None
    return embed_texts(sentences_of(rows), encoder_of(prepared, model), cache_dir=_cache())


def is_gated(model: PreTrainedModel | PeftModel) -> bool:
    """Return whether the model has SeLoRA's gates."""
    return isinstance(model, BALoraModel) and model.lora_gate is not None


def sentences_of(rows: Dataset) -> list[str]:
    """Return the input of each row: its question, its prompt, or its text or pair of texts.

    Raises:
        BALoraError: If the rows are messages or plain text, which contain the answer.
    """
    asking = next((name for name in ASKING if name in rows.column_names), None)
    if asking is None or (asking == "text" and "label" not in rows.column_names):
        raise BALoraError(
            "method: selora is gated by the input of a row, and text and messages contain the answer too; use rows of "
            "prompt and completion, of questions (qa_format), or with labels"
        )
    texts = rows[asking][:]
    if "text_pair" in rows.column_names:
        return [f"{one} {other}" for one, other in zip(texts, rows["text_pair"][:], strict=True)]
    return texts


def _cache() -> str:
    return str(cache_folder() / "sentences")
