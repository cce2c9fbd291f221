"""The recipe: every setting of a run, flat, under the names that PEFT, Transformers and TRL use."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import yaml

from balora.config import Schedule
from balora.recipe.checks import check_settings
from balora.world import WorldConfig
from balora.world.reading import ReadingConfig


@dataclass
class Recipe:
    """All settings of a run or a study. A key left out takes the default shown.

    Attributes:
        name: Name of the work, as tables and results show it.
        output_dir: Folder of the run. The same command resumes what it holds, and a study may grow there by methods,
            seeds and tasks; other settings are refused.
        method: What `balora train` trains: lora, rslora, dora, pissa, olora, milora, lora-fa, lora-ga, corda; the same
            with `+reg` for the regularizers, ba-lora being PiSSA with them; lora+; selora, selora+reg; on a base in
            4 bits qlora, qdora, qlora+reg, qdora+reg, qpissa, qba-lora; full, bitfit, houlsby, pfeiffer, adalora,
            prompt-tuning.
        methods: What `balora compare` trains: names as above, or of your own that method_settings explains.
        method_settings: Settings of single methods, by name, over the task's and the recipe's. With a `method` among
            them, the name is your own for that method so set (`{task-only: {method: ba-lora, spectral_weight: 0}}`).
        baseline: The method that the report compares the others with; null for the first of `methods`.
        sweep: Settings to vary, each with its values (`{r: [1, 8, 64]}`): `balora sweep` trains every method at every
            combination.
        worlds: Knobs of the controlled world to vary, one at a time, each with its values
            (`{pronoun_skew: [0.5, 1.0]}`): every method is trained in `world` as it is and in a world of each value,
            and its flaws are held against those of the model that was pretrained there.
        tasks: Several tasks for `balora compare`, by name: each the settings in which it differs.
        task: Of several tasks, the one for `balora train` and `balora calibrate`.
        seed: Seed of `balora train`: head, adapter start, data order, dropout.
        seeds: Seeds of `balora compare`.
        jobs: Runs that `balora compare` has going at once.
        model_name_or_path: Hub name, local folder, or `package:NAME/folder` for one inside a Python package.
        dtype: Precision the base model is loaded in.
        attn_implementation: Transformers' name of an attention, such as sdpa, eager or flash_attention_2; null for its
            choice.
        use_safetensors: Refuse weights that are pickles (`pytorch_model.bin`); false reads those alone, of them
            tensors alone. Code of a model's own is never run.
        task_type: CAUSAL_LM, SEQ_CLS or SEQ_2_SEQ_LM (T5), which writes classes as text; null means SEQ_CLS when
            label_column or glue_task is given, else CAUSAL_LM.
        world: Knobs of the controlled world, in place of a model and data of your own; `{}` for its defaults.
        reading_world: Knobs of the reading world, in place of a model and questions of your own; `{}` for its
            defaults.
        glue_task: GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte. Names columns, labels and metric, and the
            Hub's rows where no file is named.
        glue_dir: Folder of the official GLUE download (CoLA/train.tsv …), in place of the Hub.
        dataset_name: Hub dataset, in place of files.
        dataset_config_name: Its configuration.
        train_split: Its split to train on.
        validation_split: Its split to evaluate on.
        train_file: Local .jsonl, .json, .csv, .tsv, .parquet or .txt.
        validation_file: The same, to evaluate on.
        validation_share: Evaluate on this share of the training rows, then not trained on, in place of a set.
        validation_group_column: Hold that share out of this column's values, such as a template's or a user's, and
            with each value all its rows, so that none are akin to what is trained on.
        mismatched_split: A second split to evaluate on (MNLI's); its metrics end in _mismatched.
        mismatched_file: The same as a file.
        column_names: Names for the columns of a file that has no header row.
        qa_format: hotpotqa or squad: rows are questions with contexts, in that schema. What a model answers is scored
            by exact match and F1.
        gold_context: Of a context that is longer than max_length, keep supporting sentences before all others.
        perturbation_kinds: Ways to ask the evaluation's questions otherwise: synonym, paraphrase, word_order,
            distractor. Each is scored too.
        perturbation_strengths: How strongly: shares of the places of a question that are changed.
        prompt_column: Prompt of a prompt–completion row.
        completion_column: Completion of a prompt–completion row.
        prompt_template: Text around the prompt, with `{prompt}` in it.
        oasst: Rows are message trees as OASST1 publishes them, made into conversations by these settings of
            `balora.data.oasst_conversations`: languages, min_quality, max_rank, deleted, failed_review, synthetic;
            `{}` for its defaults. A validation_share is then of trees.
        messages_column: Conversation of a chat row; the tokenizer's chat template renders it.
        chat_template_path: Jinja file of a chat template, in place of the tokenizer's; null for its own.
        text_column: Text of a plain-text or classification row.
        text_pair_column: Second text of a classification row.
        label_column: Label of a classification row.
        drop_empty_rows: Leave out rows with a text that is missing or blank, rather than stop at the first.
        class_ratio: Thin training rows out to this ratio of classes, in order of their ids, such as [100, 10, 1].
        time_frequency: Train on one row of each hour, day, week or month: hourly, daily, weekly or monthly; null for
            all rows.
        time_column: The time of a row, in ISO 8601.
        auxiliary: A second task, mixed into the training rows and evaluated beside the first: those settings of this
            recipe that say where its rows are and how to read them. What it leaves out is the default. Its rows may be
            plain text where the first's are prompts and completions: to rehearse what the model was pretrained on
            (`{train_file: "world:pretraining.jsonl"}` in the controlled world).
        mixture_ratio: Training rows of the primary task to those of the auxiliary, such as [90, 10].
        streaming: Read training rows as they are needed, for sets larger than memory; needs max_steps.
        shuffle_buffer_size: With streaming, rows that are shuffled with one another at a time.
        max_train_samples: Use so many training rows.
        max_eval_samples: Use so many evaluation rows.
        subset_seed: Seed that max_train_samples, max_eval_samples, class_ratio, time_frequency, mixture_ratio and
            validation_share draw by; with null the first two take the first rows.
        max_length: Cut rows to this many tokens; null cuts nothing and stops at a row beyond the model's context.
        max_target_length: The same for what a sequence-to-sequence model is to write.
        r: Rank of the adapter.
        lora_alpha: Scaling is lora_alpha / r; null for r, so that it is 1 at every rank.
        lora_dropout: Dropout on the adapter's input.
        target_modules: Module names, or all-linear; null for PEFT's default for the model.
        target_parameters: Names of parameters to adapt besides: a mixture's experts
            (`[experts.gate_up_proj, experts.down_proj]`), which Transformers keeps in one each.
        sentence_encoder: Folder, Hub name or `package:` of a sentence-transformers model, whose vectors gate selora
            and compare answers (semsim). null for the mean of the model's own input embeddings, and no semsim.
        gate: With selora, shared or per_layer: whether its gates have their hidden layer in common.
        gate_hidden: With selora, width of that hidden layer.
        semantic_weight: With selora, λ of the semantic loss; null for 0.5.
        semantic_min_similarity: With selora, the cosine from which a pair of sentences counts; null for all pairs.
        semantic_reduction: With selora, mean or sum over the pairs.
        num_virtual_tokens: Length of prompt-tuning's prompt.
        bottleneck_size: Width of houlsby's and pfeiffer's adapters.
        modules_to_save: Modules trained in full beside the adapter.
        pissa_niter: Subspace iterations of PiSSA's randomized SVD; null for the exact one.
        start_batches: Training batches that lora-ga and corda start from.
        quantization_config: Settings of Transformers' BitsAndBytesConfig, for methods in 4 bits; what is left out is
            QLoRA's: NF4, scales quantized too, computed in the precision that training runs in.
        bias_path_weight: λ of the bias path, one more forward pass of the student; 0 is off.
        bias_path_mode: adversarial, the bias embedding on a sphere and trained against the adapter, or minimised.
        bias_path_radius: Its length, as a share of the input embeddings' own.
        bias_path_sample_rate: Share of the rows that make the second pass.
        bias_path_reduction: mean or sum over the width of the squared differences.
        task_names: [primary, auxiliary] for an adapter for each of the two tasks, in lora and lora+reg; null for one.
        alignment_weight: λ of the alignment of their adapters; 0 is off.
        anchor_weight: λ of self-anchors, the divergence from the pretrained model on text that it wrote before
            training; 0 is off.
        anchor_share: Anchors in a step for each sequence of the task's batch.
        anchor_samples: Texts that it writes.
        anchor_length: Their length in tokens.
        anchor_file: Texts of your own in their place, as in perplexity_file.
        anchor_column: Its column.
        counterfactual_words: Words that the teacher is averaged over, so that it prefers none of a group: gender,
            religion, nationality, or a file with groups of your own, one a line (`he, she`).
        wise_ft: After training, average the weights with the pretrained ones: so much of the trained, the rest of the
            pretrained (WiSE-FT's α). null leaves them as they were trained.
        consistency_weight: λ1; null for the published value (0.025 generation, 0.15 classification).
        diversity_weight: λ2; null for the published value (0.005, 0.03).
        spectral_weight: λ3; null for the published value (0.005, 0.03).
        diversity_loss: What λ2 weighs: covariance (of classes) or entropy (among the top K); null by task.
        temperature: T of the consistency term.
        consistency_direction: forward is KL(teacher ‖ student), reverse KL(student ‖ teacher).
        top_k: K of the entropy term.
        spectral_k: k of the spectral term; null for the published value (10, 5).
        clip_spectral_k: Keep k below the number of classes, where the term would otherwise be constant.
        gather_batch_terms: On several processes, covariance and spectral term of the rows of all of them together.
        consistency_schedule: constant, cosine or two_phase; null as published.
        diversity_schedule: The same for λ2.
        spectral_schedule: The same for λ3.
        sample_rate: Share of the sequences that the teacher sees (generation), at random; weighted by 1/sample_rate.
        fused_lm_head: Compute the generation objective from hidden states, never all logits at once.
        teacher_cache_mb: Memory for teacher features (classification); beyond it, a file. 0 for no cache.
        learning_rate: Peak learning rate.
        loraplus_lr_ratio: With lora+, B's learning rate over A's.
        num_train_epochs: Epochs, unless max_steps is given.
        max_steps: Optimizer steps; −1 for num_train_epochs.
        per_device_train_batch_size: Rows per device and micro-batch.
        gradient_accumulation_steps: Micro-batches per step.
        train_sampling_strategy: random, sequential, or group_by_length, which batches rows of like length.
        packing: Join short rows of a language model's text up to max_length (TRL's).
        per_device_eval_batch_size: Rows per device when evaluating.
        lr_scheduler_type: Learning-rate schedule.
        warmup_steps: Steps in which the rate rises; below 1, the share of training.
        weight_decay: AdamW's.
        max_grad_norm: Gradient clipping.
        nonfinite: At a loss or gradient that is not finite, stop; or skip: leave the step out, and stop at ten in a
            row. The batch is kept in the run's folder, under `nonfinite`.
        bf16: bfloat16 autocast.
        gradient_checkpointing: Recompute activations in backward.
        logging_steps: Steps between rows of the loss curves.
        save_steps: Steps between checkpoints.
        training_arguments: Any further field of Transformers' TrainingArguments.
        benchmarks: What a model is judged on after training, by name, each with its settings. A language model: gsm8k,
            math, humaneval, mbpp, mt_bench, wikitext2, crows_pairs, winobias, winogender, stereoset, bbq,
            counterfactual, continuations, harness; a classifier: hatecheck, counterfactual (docs/benchmarks.md).
        noise_kinds: Noise to put into the evaluation's inputs, token or embedding: stability, shift and bias under it.
        noise_levels: How much: shares of the tokens replaced, or deviations relative to the embeddings'.
        perplexity_file: Text to measure perplexity on before and after: what the model should not forget.
        perplexity_column: Its text column.
        max_perplexity_samples: Use the first so many texts.
        geometry: Measure how a classifier's representations and logits separate the classes (silhouettes), and draw
            maps and confusion matrices in the report.
        task_metric: Metric of the task axis in the report; null picks by task.
        drift_metric: Metric of the drift axis in the report; null picks by task.
    """

    name: str = "run"
    output_dir: str | None = None
    method: str = "ba-lora"
    methods: list[str] = field(default_factory=lambda: ["lora", "pissa", "ba-lora"])
    baseline: str | None = None
    method_settings: dict[str, dict] = field(default_factory=dict)
    sweep: dict[str, list] = field(default_factory=dict)
    worlds: dict[str, list[int | float]] = field(default_factory=dict)
    tasks: dict[str, dict] = field(default_factory=dict)
    task: str | None = None
    seed: int = 42
    seeds: list[int] = field(default_factory=lambda: [42])
    jobs: int = 1
    model_name_or_path: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: str | None = None
    use_safetensors: bool = True
    task_type: Literal["CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM"] | None = None
    world: WorldConfig | None = None
    reading_world: ReadingConfig | None = None
    glue_task: str | None = None
    glue_dir: str | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    train_file: str | None = None
    validation_file: str | None = None
    validation_share: float | None = None
    validation_group_column: str | None = None
    mismatched_split: str | None = None
    mismatched_file: str | None = None
    column_names: list[str] | None = None
    qa_format: Literal["hotpotqa", "squad"] | None = None
    gold_context: bool = False
    perturbation_kinds: list[str] = field(default_factory=list)
    perturbation_strengths: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75, 1.0])
    prompt_column: str | None = None
    completion_column: str | None = None
    prompt_template: str | None = None
    oasst: dict | None = None
    messages_column: str | None = None
    chat_template_path: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    drop_empty_rows: bool = False
    class_ratio: list[float] | None = None
    time_frequency: Literal["hourly", "daily", "weekly", "monthly"] | None = None
    time_column: str = "created_date"
    auxiliary: dict = field(default_factory=dict)
    mixture_ratio: list[float] = field(default_factory=lambda: [1, 1])
    streaming: bool = False
    shuffle_buffer_size: int = 10_000
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    subset_seed: int | None = None
    max_length: int | None = None
    max_target_length: int | None = None
    r: int = 16
    lora_alpha: int | None = None
    lora_dropout: float = 0.0
    target_modules: list[str] | str | None = "all-linear"
    target_parameters: list[str] | None = None
    modules_to_save: list[str] | None = None
    sentence_encoder: str | None = None
    gate: Literal["shared", "per_layer"] = "shared"
    gate_hidden: int = 64
    semantic_weight: float | None = None
    semantic_min_similarity: float | None = 0.0
    semantic_reduction: Literal["mean", "sum"] = "mean"
    num_virtual_tokens: int = 20
    bottleneck_size: int = 16
    pissa_niter: int | None = None
    start_batches: int = 8
    quantization_config: dict[str, Any] = field(default_factory=dict)
    bias_path_weight: float = 0.0
    bias_path_mode: Literal["adversarial", "minimised"] = "adversarial"
    bias_path_radius: float = 0.1
    bias_path_sample_rate: float = 1.0
    bias_path_reduction: Literal["mean", "sum"] = "mean"
    task_names: list[str] | None = None
    alignment_weight: float = 0.0
    anchor_weight: float = 0.0
    anchor_share: float = 0.5
    anchor_samples: int = 512
    anchor_length: int = 128
    anchor_file: str | None = None
    anchor_column: str = "text"
    counterfactual_words: str | None = None
    wise_ft: float | None = None
    consistency_weight: float | None = None
    diversity_weight: float | None = None
    diversity_loss: Literal["covariance", "entropy"] | None = None
    spectral_weight: float | None = None
    temperature: float = 2.0
    consistency_direction: Literal["forward", "reverse"] = "forward"
    top_k: int = 20
    spectral_k: int | None = None
    clip_spectral_k: bool = True
    gather_batch_terms: bool = False
    consistency_schedule: Schedule | None = None
    diversity_schedule: Schedule | None = None
    spectral_schedule: Schedule | None = None
    sample_rate: float = 1.0
    fused_lm_head: bool = True
    teacher_cache_mb: float = 512
    learning_rate: float = 2e-4
    loraplus_lr_ratio: float = 16.0
    num_train_epochs: float = 1.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "random"
    packing: bool = False
    per_device_eval_batch_size: int = 16
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    nonfinite: Literal["stop", "skip"] = "stop"
    bf16: bool = False
    gradient_checkpointing: bool = False
    logging_steps: int = 10
    save_steps: int = 500
    training_arguments: dict[str, Any] = field(default_factory=dict)
    benchmarks: dict[str, dict] = field(default_factory=dict)
    noise_kinds: list[str] = field(default_factory=list)
    noise_levels: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4])
    perplexity_file: str | None = None
    perplexity_column: str = "text"
    max_perplexity_samples: int | None = None
    geometry: bool = False
    task_metric: str | None = None
    drift_metric: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def has_labels(self) -> bool:
        """Whether rows are texts with a class or a number."""
        return self.label_column is not None or self.glue_task is not None or self.task_type == "SEQ_CLS"

    @property
    def is_chat(self) -> bool:
        """Whether rows are conversations, which a chat template renders."""
        return self.messages_column is not None or self.oasst is not None

    @property
    def is_classification(self) -> bool:
        """Whether a model with a classification (or regression) head is trained."""
        return self.has_labels if self.task_type is None else self.task_type == "SEQ_CLS"

    @property
    def is_seq2seq(self) -> bool:
        """Whether a sequence-to-sequence model is trained, classes being text to it."""
        return self.task_type == "SEQ_2_SEQ_LM"

    def to_yaml(self) -> str:
        """Every setting, defaults included, as YAML."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)
