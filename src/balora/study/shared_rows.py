"""Rows of a study on disk, where the `datasets` library keeps what one run tokenized for the runs after it.

`datasets` keeps what `map` and `filter` make of rows in a file beside theirs, named by the content of the rows, the
function and its arguments, the tokenizer among them. Rows in memory are mapped again in every process.
"""

from pathlib import Path
from tempfile import mkdtemp

from datasets import Dataset, IterableDataset, load_from_disk

_folder: Path | None = None


def share_rows_in(folder: Path | None) -> None:
    """Set the folder that this process shares rows in; `None` for none."""
    global _folder
    _folder = folder


def shared(rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Return the same rows from a file in the study's folder; a stream, and rows outside of a study, as they are."""
    if _folder is None or isinstance(rows, IterableDataset):
        return rows
    path = _folder / rows._fingerprint  # a digest of their content
    if not path.exists():
        part = Path(mkdtemp(dir=_folder))
        rows.save_to_disk(part)
        try:
            part.rename(path)
        except OSError:  # another run was faster
            if not path.exists():
                raise
    return load_from_disk(path)
