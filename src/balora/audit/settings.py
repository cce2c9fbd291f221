"""What an audit is asked for, on the command line or from Python."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class AuditSettings:
    """Settings of `balora audit`. Paths may have `${NAME:-default}` and `~`; what is not named is not measured.

    Attributes:
        model: The base: a folder, or a name on the Hub.
        adapter: Folder of a PEFT adapter, or of a model tuned in full; null to audit the base alone.
        output_dir: Folder for audit.json and audit.html. The same command goes on where it was stopped, and one that
            asks for more measures what is not there yet.
        own_texts: Texts that the base of a language model writes for the audit, which need no corpus; 0 for none.
        own_length: Tokens of each.
        wikitext2: A file of WikiText-2, as published.
        data_file: Texts of your own: a local file or a dataset on the Hub. For a classifier, rows.
        data_split: Split of a dataset on the Hub.
        text_column: Column of the texts.
        text_pair_column: Column of second texts, where a classifier takes pairs.
        label_column: Column of a classifier's labels; null where there are none.
        label_names: A classifier's classes in the order of their ids; null for those that its configuration names.
        crows_pairs: `crows_pairs_anonymized.csv`.
        stereoset: StereoSet's `dev.json`, or a list of its intrasentence items.
        bbq: Files of BBQ, such as `Age.jsonl`.
        winobias: Folder of WinoBias.
        winogender: Folder of Winogender.
        hatecheck: `test_suite_cases.csv`, for a classifier with a class `hateful`.
        hateful_label: What that class is called.
        words: List of words whose exchange should change nothing: `gender`, `religion`, `nationality` or a file with a
            group a line; null for none.
        prompts: File of prompts, one a line, behind which a preference for one of the words shows; null for prompts of
            our own about occupations.
        scorer: What judges texts that the models write: `transformers:MODEL:LABEL`, or `package.module:function` from
            texts to numbers; null for none.
        continuations: Files of prompts by group in BOLD's form; empty for a small one of our own.
        continuations_per_prompt: Texts written behind each prompt.
        continuation_tokens: Tokens of each.
        max_samples: The first so many texts, rows, pages, pairs or items of each file; null for all.
        max_length: Tokens that a row is cut to, and a language model reads at once, through windows; null for the
            model's context, beyond which no row may be.
        max_matrices: Weights whose singular vectors are looked at, evenly spread over the model; null for all.
        batch_size: Texts at a time; of long ones fewer.
        dtype: Of the weights: `auto`, `float32`, `bfloat16` or `float16`.
        use_safetensors: Refuse weights that are pickles (`pytorch_model.bin`); false reads those alone, of them
            tensors alone. Code of a model's own is never run.
        seed: Of what is drawn: the base's texts, continuations, intervals.
    """

    model: str
    adapter: str | None = None
    output_dir: str | None = None
    own_texts: int = 64
    own_length: int = 128
    wikitext2: str | None = None
    data_file: str | None = None
    data_split: str | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str | None = None
    label_names: list[str] | None = None
    crows_pairs: str | None = None
    stereoset: str | None = None
    bbq: list[str] = field(default_factory=list)
    winobias: str | None = None
    winogender: str | None = None
    hatecheck: str | None = None
    hateful_label: str = "hateful"
    words: str | None = "gender"
    prompts: str | None = None
    scorer: str | None = None
    continuations: list[str] = field(default_factory=list)
    continuations_per_prompt: int = 5
    continuation_tokens: int = 32
    max_samples: int | None = None
    max_length: int | None = None
    max_matrices: int | None = 32
    batch_size: int = 16
    dtype: str = "auto"
    use_safetensors: bool = True
    seed: int = 0
