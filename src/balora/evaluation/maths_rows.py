"""Problems in mathematics with their reference solutions: the rows of GSM8K and MATH in one form."""

from datasets import Dataset

from balora.data.columns import check_strings, column_values, row_error


def gsm8k_rows(dataset: Dataset, *, source: str = "GSM8K") -> Dataset:
    """GSM8K's word problems (Cobbe et al., 2021).

    Args:
        dataset: Columns `question` and `answer`, a solution whose last line is `#### n`.
        source: File or Hub name it came from, for errors.

    Returns:
        The same rows with columns `prompt`, the question; `completion`, the solution; `answer`, the number.

    Raises:
        BALoraError: If a column is absent, or a solution does not close with its number.
    """
    columns = _texts(dataset, {"prompt": "question", "completion": "answer"}, source)
    closings = [solution.rpartition("####")[1:] for solution in columns["completion"]]
    for row, (marker, answer) in enumerate(closings, start=1):
        if not marker or not answer.strip():
            raise row_error(source, row, "answer", "does not close with '####' and the number")
    return Dataset.from_dict({**columns, "answer": [answer.strip() for _, answer in closings]})


def math_rows(dataset: Dataset, *, source: str = "MATH") -> Dataset:
    """MATH's competition problems (Hendrycks et al., 2021), in the form of MATH-500 (Lightman et al., 2023).

    Args:
        dataset: Columns `problem`, `solution`, `answer`, `subject`, `level`.
        source: File or Hub name it came from, for errors.

    Returns:
        The same rows with columns `prompt`, the problem; `completion`, the solution; `answer`, in LaTeX; `subject`;
        `level`, from 1 to 5.

    Raises:
        BALoraError: If a column is absent, or a text is missing or empty.
    """
    names = {"prompt": "problem", "completion": "solution", "answer": "answer", "subject": "subject"}
    columns = _texts(dataset, names, source)
    return Dataset.from_dict({**columns, "level": column_values(dataset, "level", source=source)})


def _texts(dataset: Dataset, names: dict[str, str], source: str) -> dict[str, list[str]]:
    columns = {new: column_values(dataset, old, source=source) for new, old in names.items()}
    for new, old in names.items():
        check_strings(columns[new], source=source, column=old)
    return columns
