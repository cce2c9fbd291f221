"""SeLoRA's sentence vectors in a study: whose they are, and of which texts."""

from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from balora.data import add_sentence_embeds, input_embedding_encoder
from balora.data.sentences import SentenceEncoder, embed_texts
from balora.errors import BALoraError
from balora.model.base import BALoraModel
from balora.study.workload import Workload
from balora.utils.files import cache_folder

#: Columns that say what a row asks, without its answer: the first that is there. Text does beside a label.
ASKING = ("question", "prompt", "text")


def encoder_of(workload: Workload, model: PreTrainedModel) -> SentenceEncoder:
    """The recipe's sentence encoder, else the model's own input embeddings."""
    return workload.encoder or input_embedding_encoder(model, workload.tokenizer)


def sentence_dim(workload: Workload, model: PreTrainedModel) -> int:
    """Length of the encoder's vectors."""
    return encoder_of(workload, model)(["."]).shape[1]


def with_sentences(workload: Workload, model: PreTrainedModel | PeftModel, rows: Dataset, tokens: Dataset) -> Dataset:
    """`tokens`, N rows, with a column of the vectors of `rows`, the same as texts; as they are for other methods."""
    if not is_gated(model):
        return tokens
    encoder = encoder_of(workload, model)
    return add_sentence_embeds(tokens, sentences_of(rows), encoder, cache_dir=_cache())


def sentence_vectors(workload: Workload, model: PreTrainedModel | PeftModel, rows: Dataset) -> Tensor | None:
    """The vectors of `rows`, `(N, d)`; `None` for other methods."""
    if not is_gated(model):
        return None
    return embed_texts(sentences_of(rows), encoder_of(workload, model), cache_dir=_cache())


def is_gated(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the model is SeLoRA's."""
    return isinstance(model, BALoraModel) and model.lora_gate is not None


def sentences_of(rows: Dataset) -> list[str]:
    """What each row asks: its question, its prompt, or its text, or both of two texts.

    Raises:
        BALoraError: If the rows are messages, or text that a model goes on to write.
    """
    asking = next((name for name in ASKING if name in rows.column_names), None)
    if asking is None or (asking == "text" and "label" not in rows.column_names):
        raise BALoraError(
            "method: selora is gated by what a row asks, and text and messages hold the answer too; use rows of "
            "prompt and completion, of questions (qa_format), or with labels"
        )
    texts = rows[asking][:]
    if "text_pair" in rows.column_names:
        return [f"{one} {other}" for one, other in zip(texts, rows["text_pair"][:], strict=True)]
    return texts


def _cache() -> str:
    return str(cache_folder() / "sentences")
