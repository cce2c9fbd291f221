"""From the user's data to `datasets.Dataset`s in the standard forms, one clear error for each way to be wrong.

A recipe's path is expanded (`expand`), a file or Hub name becomes a table (`sources`, `readers`), a table becomes rows
for one task (`causal_lm`, `classification`, `text_to_text`), and rows are held against the model's context
(`lengths`). `streaming` does the same row by row, for sets larger than memory.
Question answering has a form of its own between table and rows (`hotpotqa`, `squad`, `qa`, `qa_context`).
SeLoRA's get a sentence vector each (`sentences`).
OpenAssistant's trees become conversations (`oasst`). Several tasks are mixed in a ratio (`mixture`), and a set is
thinned out in time (`timestamps`).
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
