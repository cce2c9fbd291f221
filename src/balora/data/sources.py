"""Load a local file or a Hub dataset as a table, or stream its rows."""

import difflib
import os
import re
from pathlib import Path

import datasets
from datasets import Dataset, IterableDataset, load_dataset

from balora.data.readers import read_csv, read_json, read_jsonl, read_parquet, read_text, read_tsv, stream_rows
from balora.errors import BALoraError

READERS = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".txt": read_text,
}
#: Readers of files that may lack a header and then need `column_names`.
DELIMITED_READERS = {".csv": read_csv, ".tsv": read_tsv}
SUFFIXES = (*READERS, *DELIMITED_READERS)

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def load_table(
    source: str, *, split: str | None = None, name: str | None = None, column_names: list[str] | None = None
) -> Dataset:
    """Load one table from a local file or from the Hub.

    Files are UTF-8, with or without a byte-order mark. The suffix determines the format:

    - `.jsonl`, `.jsonl.gz`: one object per line.
    - `.json`: a list of objects, a list of strings (column `text`), an object of objects by id, or `{"data": [...]}`.
    - `.csv`: standard quoting, and the delimiter of its first line. `.tsv`: no quoting at all, as in GLUE. All their
      values are strings.
    - `.parquet`: with its own types.
    - `.txt`: one row per line in a column `text`, without blank lines.

    Args:
        source: Path of a file with one of these suffixes, or the name of a dataset on the Hub.
        split: Split of the Hub dataset, such as `train` or `train[:1000]`; not needed if there is only one.
        name: Configuration of the Hub dataset.
        column_names: Columns of a `.csv` or `.tsv` file without a header.

    Returns:
        A table with at least one row.

    Raises:
        BALoraError: If the file or dataset does not exist, cannot be read, or has no rows.
    """
    if _is_file(source, split, name, column_names):
        dataset = _load_file(Path(source), column_names)
    else:
        dataset = _load_from_hub(source, split, name)
    if len(dataset) == 0:
        raise BALoraError(f"{source}: no rows")
    return dataset


def stream_table(
    source: str, *, split: str | None = None, name: str | None = None, column_names: list[str] | None = None
) -> IterableDataset:
    """Stream the rows of `load_table`; they are read lazily, and again in every iteration.

    All its file formats except `.json`, which is one document. An invalid line raises when it is read.

    Args:
        source: As in `load_table`.
        split: As in `load_table`.
        name: As in `load_table`.
        column_names: As in `load_table`.

    Raises:
        BALoraError: If the file or dataset does not exist, or its format cannot be streamed.
    """
    if not _is_file(source, split, name, column_names):
        return _load_from_hub(source, split, name, streaming=True)
    names = tuple(column_names or ())  # a list would be taken for shards
    settings = {"path": Path(source), "suffix": _suffix(Path(source), column_names), "column_names": names}
    stream_rows(**settings)  # raises at once for a format that cannot be streamed
    return IterableDataset.from_generator(stream_rows, gen_kwargs=settings)


def _is_file(source: str, split: str | None, name: str | None, column_names: list[str] | None) -> bool:
    if os.path.isfile(source) or _looks_like_path(source):
        if split is not None or name is not None:
            raise BALoraError(f"{source}: `split` and `name` choose within a Hub dataset; leave them out for a file")
        return True
    if column_names is not None:
        raise BALoraError(f"{source}: `column_names` is for .csv and .tsv files without a header, not Hub datasets")
    return False


def _looks_like_path(source: str) -> bool:
    return source.lower().endswith(SUFFIXES) or os.path.isdir(source) or HUB_NAME.fullmatch(source) is None


def _load_file(path: Path, column_names: list[str] | None) -> Dataset:
    suffix = _suffix(path, column_names)
    return DELIMITED_READERS[suffix](path, column_names) if suffix in DELIMITED_READERS else READERS[suffix](path)


def _suffix(path: Path, column_names: list[str] | None) -> str:
    """Return the suffix of an existing file, which is its format."""
    if os.path.isdir(path):
        raise BALoraError(f"{path}: is a folder; name a file in it ({', '.join(SUFFIXES)})")
    suffix = next((known for known in SUFFIXES if path.name.lower().endswith(known)), None)
    if not os.path.isfile(path):
        raise BALoraError(f"{path}: no such file{_nearest_name(path)}")
    if suffix is None:
        raise BALoraError(f"{path}: unknown file format; the name must end in one of {', '.join(SUFFIXES)}")
    if column_names is not None and suffix not in DELIMITED_READERS:
        raise BALoraError(f"{path}: `column_names` is for .csv and .tsv files without a header; leave it out")
    return suffix


def _nearest_name(path: Path) -> str:
    if not os.path.isdir(path.parent):
        return f", nor is there a folder {path.parent}"
    close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _load_from_hub(
    source: str, split: str | None, name: str | None, *, streaming: bool = False
) -> Dataset | IterableDataset:
    try:
        loaded = load_dataset(source, name, split=split, **({"streaming": True} if streaming else {}))
    except Exception as error:  # the network, a cache or a dataset's files may raise anything
        offline = " (HF_HUB_OFFLINE is set: only datasets in the cache can be loaded)"
        cause = error.__cause__ or error
        raise BALoraError(
            f"{source}: neither a local file nor a Hub dataset that can be loaded"
            f"{offline if datasets.config.HF_HUB_OFFLINE else ''}: {type(cause).__name__}: {cause}"
        ) from error
    if isinstance(loaded, dict):
        if len(loaded) > 1:
            raise BALoraError(f"{source}: has the splits {', '.join(loaded)}; choose one with `split`")
        (loaded,) = loaded.values()
    return loaded
