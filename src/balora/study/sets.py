"""The sets of rows that a recipe names: trained on, thinned out, held out, mixed of two tasks; or streamed."""

from dataclasses import MISSING, dataclass, field, fields, replace

from datasets import Dataset, IterableDataset
from sklearn.model_selection import GroupShuffleSplit
from transformers import PreTrainedTokenizerBase

from balora.data import split_oasst, to_causal_lm_rows
from balora.data.glue import GLUE
from balora.data.imbalance import subsample_to_ratio
from balora.data.mixture import mix_tasks
from balora.data.streaming import read_whole, stream_causal_lm_rows
from balora.data.timestamps import thin_by_time
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.dataset import AUXILIARY_SETTINGS, MIXED_TASKS
from balora.study.questions import with_prompts
from balora.study.split import (
    GROUP,
    OASST_TIME,
    causal_columns,
    read_split,
    read_table,
    source_of,
    subset,
    with_glue_data,
    without_empty,
)

#: Names of evaluation sets beside the first; their metrics end in these.
MISMATCHED = "mismatched"
AUXILIARY = MIXED_TASKS[1]


@dataclass(frozen=True)
class Sets:
    """Rows in the form of the recipe's task; see `balora.study.workload.Workload`."""

    train: Dataset | IterableDataset
    validation: Dataset | None
    label_names: list[str] | None
    others: dict[str, Dataset] = field(default_factory=dict)
    #: Texts of the training split that were not held out, whether they are trained on or were thinned out: they are
    #: akin to what is trained on, so a classifier is not judged on them.
    spent: frozenset[str] = frozenset()


def read_sets(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Sets:
    """Read every set of rows that a recipe names, its paths being expanded.

    Args:
        recipe: The recipe.
        tokenizer: The model's, by which questions' contexts are cut to fit.

    Raises:
        BALoraError: Naming the file, row or setting that is wrong.
    """
    if recipe.streaming:
        return _streamed(recipe)
    return _mixed(recipe, tokenizer) if recipe.auxiliary else _single(recipe, tokenizer)


def _single(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Sets:
    """The sets of one task."""
    known = list(GLUE[recipe.glue_task].label_names) if recipe.glue_task else None
    train, label_names = read_split(recipe, recipe.train_file, recipe.train_split, known, train=True)
    texts = {text.strip() for text in train["text"]} if recipe.is_classification else set()
    # Groups, and what classes are judged on, are those of the whole file.
    whole = recipe.validation_group_column is not None or recipe.class_ratio is not None
    train = train if whole else subset(recipe, train, recipe.max_train_samples)
    validation, others = None, {}
    if recipe.validation_share is not None:
        train, validation = _hold_out(recipe, train)
        if recipe.is_classification:
            texts -= {text.strip() for text in validation["text"]} - {text.strip() for text in train["text"]}
    elif recipe.validation_file or recipe.dataset_name:
        validation, _ = read_split(recipe, recipe.validation_file, recipe.validation_split, label_names)
        validation = subset(recipe, validation, recipe.max_eval_samples)
    if recipe.validation_share is None and (recipe.mismatched_file or recipe.mismatched_split):
        mismatched, _ = read_split(recipe, recipe.mismatched_file, recipe.mismatched_split, label_names)
        others[MISMATCHED] = subset(recipe, mismatched, recipe.max_eval_samples)
    if recipe.time_frequency is not None:
        how = {"seed": recipe.subset_seed or 0, "source": source_of(recipe), "column": recipe.time_column}
        train = thin_by_time(train, recipe.time_frequency, **how)
    if recipe.class_ratio is not None:
        train = subsample_to_ratio(
            train,
            recipe.class_ratio,
            seed=recipe.subset_seed or 0,
            source=source_of(recipe),
            label_names=label_names,
            total=recipe.max_train_samples,
        )
    elif whole:
        train = subset(recipe, train, recipe.max_train_samples)
    if recipe.qa_format is not None:
        train = with_prompts(recipe, tokenizer, train, source_of(recipe), gold=recipe.gold_context)
        if validation is not None:
            validation = with_prompts(recipe, tokenizer, validation, recipe.validation_file or source_of(recipe))
    others = {name: _without_marks(recipe, rows) for name, rows in others.items()}
    train, validation = (_without_marks(recipe, rows) for rows in (train, validation))
    return Sets(train, validation, label_names, others, frozenset(texts))


def _without_marks(recipe: Recipe, rows: Dataset | None) -> Dataset | None:
    """Rows without what they were held out and thinned by."""
    marks = {GROUP, "tree", OASST_TIME, *([recipe.time_column] if recipe.time_frequency else [])}
    return rows if rows is None else rows.remove_columns([name for name in rows.column_names if name in marks])


def _mixed(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Sets:
    """Two tasks' training rows in one set, in the recipe's ratio; each task is evaluated on its own."""
    alone = replace(recipe, auxiliary={}, task_names=None, alignment_weight=0.0, max_train_samples=None)
    own = {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(Recipe)}
    try:
        other = replace(alone, **{name: own[name] for name in AUXILIARY_SETTINGS} | recipe.auxiliary)
    except BALoraError as error:
        raise BALoraError(f"auxiliary: {error}") from error
    primary, auxiliary = (_single(with_glue_data(part), tokenizer) for part in (alone, other))
    auxiliary = replace(
        auxiliary,
        train=_in_form_of(primary.train, auxiliary.train),
        validation=auxiliary.validation and _in_form_of(primary.train, auxiliary.validation),
    )
    if primary.label_names != auxiliary.label_names:
        raise BALoraError(
            f"auxiliary: its classes are {auxiliary.label_names} and the recipe's own {primary.label_names}; mixed "
            "tasks share one head, so they need the same"
        )
    train = mix_tasks(
        dict(zip(MIXED_TASKS, (primary.train, auxiliary.train), strict=True)),
        dict(zip(MIXED_TASKS, recipe.mixture_ratio, strict=True)),
        seed=recipe.subset_seed or 0,
        total=recipe.max_train_samples,
    )
    tasks = train["task"]
    others = primary.others if auxiliary.validation is None else {**primary.others, AUXILIARY: auxiliary.validation}
    spent = primary.spent | auxiliary.spent
    sets = Sets(train.remove_columns("task"), primary.validation, primary.label_names, others, spent)
    return sets if recipe.task_names is None else _with_task_ids(sets, [MIXED_TASKS.index(task) for task in tasks])


def _in_form_of(rows: Dataset, texts: Dataset) -> Dataset:
    """Plain text as completions of empty prompts, all of it to be learned, where it is to be mixed with such rows."""
    if set(rows.column_names) != {"prompt", "completion"} or texts.column_names != ["text"]:
        return texts
    return Dataset.from_dict({"prompt": [""] * len(texts), "completion": texts["text"][:]})


def _with_task_ids(sets: Sets, train: list[int]) -> Sets:
    """Each row with the place of its task, for a model that has an adapter for each."""

    def given(rows: Dataset | None, place: int) -> Dataset | None:
        return None if rows is None else rows.add_column("task_ids", [place] * len(rows))

    others = {name: given(rows, int(name == AUXILIARY)) for name, rows in sets.others.items()}
    return replace(
        sets, train=sets.train.add_column("task_ids", train), validation=given(sets.validation, 0), others=others
    )


def _streamed(recipe: Recipe) -> Sets:
    """Training rows as a stream, and a whole set to evaluate on."""
    source, table = read_table(recipe, recipe.train_file, recipe.train_split, streaming=True)
    settings = {"max_rows": recipe.max_train_samples, "drop_empty": recipe.drop_empty_rows}
    train = stream_causal_lm_rows(table, source=source, **settings, **causal_columns(recipe))
    validation, file = None, recipe.validation_file
    if file or recipe.dataset_name:
        # Of a Hub set that is not streamed, the training rows would be downloaded too.
        source, table = read_table(recipe, file, recipe.validation_split, streaming=file is None)
        rows = table if isinstance(table, Dataset) else read_whole(table)
        rows = without_empty(rows, recipe, source) if recipe.drop_empty_rows else rows
        validation = to_causal_lm_rows(rows, source=source, **causal_columns(recipe))
        validation = subset(recipe, validation, recipe.max_eval_samples)
    return Sets(train, validation, label_names=None)


def _hold_out(recipe: Recipe, rows: Dataset) -> tuple[Dataset, Dataset]:
    """The rows to train on, and those to evaluate on in place of an evaluation set."""
    seed = recipe.subset_seed or 0
    if recipe.oasst is not None:
        return split_oasst(rows, validation_share=recipe.validation_share, seed=seed, source=source_of(recipe))
    if recipe.validation_group_column is None:
        parts = rows.train_test_split(test_size=recipe.validation_share, seed=seed)
        return parts["train"], parts["test"]
    groups = rows[GROUP][:]
    if len(set(groups)) < 2:
        raise BALoraError(
            f"validation_group_column: {source_of(recipe)} has one value in {recipe.validation_group_column!r}; "
            "at least two are needed to hold one out"
        )
    splitter = GroupShuffleSplit(n_splits=1, test_size=recipe.validation_share, random_state=seed)
    train, held_out = next(splitter.split(groups, groups=groups))
    return rows.select(train), rows.select(held_out)
