"""Files read row by row, for those larger than memory: the same forms and errors as `balora.data.readers`."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from balora.data.readers import csv_records, jsonl_rows, named_records, text_lines, tsv_records
from balora.errors import BALoraError

#: Rows of a parquet file in memory at a time.
PARQUET_ROWS = 256


def stream_rows(path: Path, suffix: str, column_names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a file, none of them read before it is asked for.

    Args:
        path: The file.
        suffix: The form, by `balora.data.sources.SUFFIXES`.
        column_names: Names for a `.csv` or `.tsv` file that has no header row; none for one that has.

    Raises:
        BALoraError: Where reading meets what is wrong, naming the line; at once for `.json`, which is one document.
    """
    if suffix == ".json":
        raise BALoraError(f"{path}: is one JSON document, which is only read whole; to stream it, write it as .jsonl")
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix == ".txt":
        return ({"text": line} for line in text_lines(_lines(path)))
    if suffix in (".jsonl", ".jsonl.gz"):
        return jsonl_rows(_lines(path), path)
    records = (
        tsv_records(_lines(path))
        if suffix == ".tsv"
        else csv_records((f"{line}\n" for line in _lines(path)), path, path.stat().st_size)
    )
    names, values = named_records(records, list(column_names), path)
    return (dict(zip(names, record, strict=True)) for record in values)


def _lines(path: Path) -> Iterator[str]:
    """Lines without their ends, UTF-8, with or without a byte-order mark."""
    number = 1
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8").removesuffix("\n")
                yield text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        raise BALoraError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise BALoraError(f"{path}: cannot be read: {error}") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                yield from batch.to_pylist()
    except Exception as error:  # a damaged file also carries damaged metadata, which may lead to any error
        raise BALoraError(f"{path}: not a readable parquet file: {error}") from error
