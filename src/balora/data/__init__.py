"""Read the user's data into `datasets.Dataset`s in standard forms, with one clear error for each mistake.

- `expand`, `sources`, `readers`: expand a path, and read a file or a Hub dataset into a table.
- `causal_lm`, `classification`, `text_to_text`: convert a table to rows for one kind of model.
- `messages`, `chat`, `chat_tokens`: conversations in a standard form, through a chat template, as tokens.
- `special_tokens`: tokens that pad, end or begin a text.
- `streaming`: the same row by row, for datasets larger than memory.
- `qa_datasets`, `qa`: questions with contexts, and prompts made from them.
- `oasst`, `oasst_trees`: OpenAssistant's trees as conversations.
- `glue`: GLUE's tasks, their files and columns.
- `mixture`, `subsampling`: mix tasks in a ratio; leave rows out by class or by time.
- `perturbation`: ask a question in other words.
- `sentences`: sentence embeddings for SeLoRA.
"""

from balora.data.causal_lm import to_causal_lm_rows
from balora.data.classification import to_classification_rows, tokenize_classification
from balora.data.expand import expand_path
from balora.data.mixture import mix_tasks, stack_tasks
from balora.data.oasst import oasst_conversations, split_oasst
from balora.data.qa import select_context, to_qa_rows
from balora.data.qa_datasets import hotpotqa_rows, squad_rows
from balora.data.sentences import add_sentence_embeds, input_embedding_encoder, load_sentence_encoder
from balora.data.sources import load_table, stream_table
from balora.data.subsampling import thin_by_time
from balora.data.text_to_text import to_text_to_text_rows, tokenize_seq2seq
from balora.utils.lengths import check_lengths, check_max_length, context_length

__all__ = [
    "add_sentence_embeds",
    "check_lengths",
    "check_max_length",
    "context_length",
    "expand_path",
    "hotpotqa_rows",
    "input_embedding_encoder",
    "load_sentence_encoder",
    "load_table",
    "mix_tasks",
    "oasst_conversations",
    "select_context",
    "split_oasst",
    "squad_rows",
    "stack_tasks",
    "stream_table",
    "thin_by_time",
    "to_causal_lm_rows",
    "to_classification_rows",
    "to_qa_rows",
    "to_text_to_text_rows",
    "tokenize_classification",
    "tokenize_seq2seq",
]
