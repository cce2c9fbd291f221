"""Read files into tables, or row by row if they are larger than memory; one function per file format.

Own parsing code stands only where the libraries lose data silently: pandas pads short rows, pyarrow reads on past an
unclosed quote, and `Dataset.from_list` takes its columns from the first row alone. Each reader raises `BALoraError`,
naming the line if the format has lines.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, Features

from balora.errors import BALoraError
from balora.utils.progress import tracked, working

#: Errors of `datasets` and pyarrow for a value without an Arrow type: a lone surrogate, an integer beyond 64 bits.
REFUSALS = (ValueError, TypeError, OverflowError, RecursionError)
#: Delimiters of CSV files.
DELIMITERS = (",", ";", "\t", "|")
#: First line in which a spreadsheet names its delimiter; it is no row.
DECLARED_DELIMITER = re.compile(r"sep=(.)")
#: Rows of a parquet file that are read at a time.
PARQUET_ROWS = 256


def read_jsonl(path: Path) -> Dataset:
    """Read one JSON object per line, gzipped if the name ends in `.gz`; blank lines are skipped."""
    lines = tracked(_read_text(path).split("\n"), f"reading {path}")
    return _from_rows(list(jsonl_rows(lines, path)), path)


def read_json(path: Path) -> Dataset:
    """Read a list of objects or of strings (column `text`), an object of objects by id, or `{"data": [...]}`.

    The ids of an object of objects are dropped.
    """
    with working(f"reading {path}"):
        content = _parse_json(_read_text(path), where=str(path))
    if isinstance(content, dict):
        content = content["data"] if isinstance(content.get("data"), list) else list(content.values())
    if not isinstance(content, list):
        raise BALoraError(f"{path}: expected a list of rows, found {_kind(content)}")
    expected = str if content and isinstance(content[0], str) else dict
    for number, row in enumerate(content, start=1):
        if not isinstance(row, expected):
            wanted = "a string like row 1" if expected is str else "an object"
            raise BALoraError(f"{path}, row {number}: expected {wanted}, found {_kind(row)}")
    return _from_rows([{"text": row} for row in content] if expected is str else content, path)


def read_tsv(path: Path, column_names: list[str] | None) -> Dataset:
    """Read tab-separated lines as GLUE writes them: no quoting, all values strings, a header line.

    Args:
        path: The file. A byte-order mark and carriage returns at line ends are dropped.
        column_names: Names for a file that has no header line.
    """
    lines = tracked(_read_text(path).split("\n"), f"reading {path}")
    return _from_records(tsv_records(lines), column_names, path)


def read_csv(path: Path, column_names: list[str] | None) -> Dataset:
    """Read rows separated by commas, or as `delimiter_of` finds, with standard quoting: strings under a header row.

    Args:
        path: The file.
        column_names: Names for a file that has no header row.
    """
    text = _read_text(path)
    lines = tracked(io.StringIO(text, newline=""), f"reading {path}", total=text.count("\n"))
    records = csv_records(lines, path, len(text), column_names)
    return _from_records(records, column_names, path)


def read_text(path: Path) -> Dataset:
    """Read one row per line in a `text` column, like the `text` loader of `datasets`, without blank lines."""
    return Dataset.from_dict({"text": list(text_lines(_read_text(path).split("\n")))})


def read_parquet(path: Path) -> Dataset:
    """Read a parquet file with its own types, including those of `datasets` (`ClassLabel`)."""
    try:
        with working(f"reading {path}"):
            table = pq.read_table(path)
            return Dataset.from_dict(
                {name: table[name] for name in table.column_names}, features=Features.from_arrow_schema(table.schema)
            )
    except Exception as error:  # a damaged file also carries damaged metadata, which may lead to any error
        raise BALoraError(f"{path}: not a readable parquet file: {error}") from error


def stream_rows(path: Path, suffix: str, column_names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Read the rows of a file lazily.

    Args:
        path: The file.
        suffix: The file format, one of `balora.data.sources.SUFFIXES`.
        column_names: Names for a `.csv` or `.tsv` file that has no header row.

    Raises:
        BALoraError: While reading, naming the invalid line; at once for `.json`, which is one document.
    """
    if suffix == ".json":
        raise BALoraError(f"{path}: is one JSON document, which cannot be streamed; convert it to .jsonl")
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix == ".txt":
        return ({"text": line} for line in text_lines(_lines(path)))
    if suffix in (".jsonl", ".jsonl.gz"):
        return jsonl_rows(_lines(path), path)
    records = (
        tsv_records(_lines(path))
        if suffix == ".tsv"
        else csv_records((f"{line}\n" for line in _lines(path)), path, path.stat().st_size, list(column_names))
    )
    names, values = named_records(records, list(column_names), path)
    return (dict(zip(names, record, strict=True)) for record in values)


def jsonl_rows(lines: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of lines that are not blank."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _parse_json(line, where=f"{path}, line {number}")
            if not isinstance(row, dict):
                raise BALoraError(f"{path}, line {number}: expected a JSON object, found {_kind(row)}")
            yield row


def tsv_records(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and fields of each line that is not empty."""
    without_returns = (line.removesuffix("\r") for line in lines)
    return ((number, line.split("\t")) for number, line in enumerate(without_returns, start=1) if line)


def csv_records(
    lines: Iterable[str], path: Path, size: int, column_names: list[str] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the last line number and the fields of each row.

    Args:
        lines: The file's lines with their line ends.
        path: Path of the file, for errors.
        size: Largest number of characters of a field. The default of `csv`, 131,072, is less than a long document.
        column_names: Names for a file that has no header row.
    """
    csv.field_size_limit(max(csv.field_size_limit(), size))
    lines = iter(lines)
    first = next(lines, "")
    declared = DECLARED_DELIMITER.fullmatch(first.rstrip("\r\n"))
    if declared is None:
        lines, delimiter = chain([first], lines), delimiter_of(first, column_names)
    else:
        delimiter = declared[1]
    reader, before = csv.reader(lines, strict=True, delimiter=delimiter), int(declared is not None)
    try:
        for record in reader:
            if record:
                yield before + reader.line_num, record
    except csv.Error as error:
        raise BALoraError(f"{path}, line {before + reader.line_num}: not CSV: {error}") from error


def delimiter_of(line: str, column_names: list[str] | None = None) -> str:
    """Return the delimiter of a CSV file: a comma, unless its first line has several fields only by another one.

    Spreadsheets write semicolons in countries with a decimal comma.

    Args:
        line: The first line.
        column_names: Names for a file that has no header row; the first line then has a field for each.
    """
    fields = {delimiter: len(next(csv.reader([line], delimiter=delimiter), [])) for delimiter in DELIMITERS}
    if column_names:
        return next((one for one in DELIMITERS if fields[one] == len(column_names)), ",")
    return "," if fields[","] > 1 else max(DELIMITERS, key=fields.__getitem__)


def text_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines that are not blank."""
    return (line for line in (line.removesuffix("\r") for line in lines) if line.strip())


def named_records(
    records: Iterable[tuple[int, list[str]]], names: list[str] | None, path: Path
) -> tuple[list[str], Iterator[list[str]]]:
    """Return the column names, by default the first record, and the other records, all of that length."""
    records = iter(records)
    names = names or next(records, (0, []))[1]
    for name, count in Counter(names).items():
        if count > 1 or "\0" in name:
            problem = "occurs more than once" if count > 1 else "holds a NUL character"
            raise BALoraError(f"{path}: the column name {name!r} {problem}")
    return names, _of_length(len(names), records, path)


def _of_length(length: int, records: Iterator[tuple[int, list[str]]], path: Path) -> Iterator[list[str]]:
    for number, record in records:
        if len(record) != length:
            raise BALoraError(f"{path}, line {number}: {len(record)} fields, but there are {length} columns")
        yield record


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BALoraError(f"{path}: not UTF-8 at byte offset {error.start}; save the file as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise BALoraError(f"{path}: cannot be read: {error}") from error


def _parse_json(text: str, *, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BALoraError(f"{where}: not JSON: {error}") from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _from_records(records: Iterable[tuple[int, list[str]]], names: list[str] | None, path: Path) -> Dataset:
    names, rows = named_records(records, names, path)
    values = list(rows)
    return Dataset.from_dict({name: [record[i] for record in values] for i, name in enumerate(names)})


def _from_rows(rows: list[dict[str, Any]], path: Path) -> Dataset:
    try:
        return _to_dataset(rows)
    except REFUSALS as error:
        raise BALoraError(f"{path}, row {_first_refused(rows)}: holds a value no table can hold: {error}") from error


def _to_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """Build a table with the columns of all rows; a column of mixed types is kept as JSON."""
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names}, on_mixed_types="use_json")


def _first_refused(rows: list[dict[str, Any]]) -> int:
    """Return the number, from 1, of the first row that no table can hold, by bisection."""
    fits, fails = 0, len(rows)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        try:
            _to_dataset(rows[:middle])
            fits = middle
        except REFUSALS:
            fails = middle
    return fails


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without their ends and without a byte-order mark."""
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
