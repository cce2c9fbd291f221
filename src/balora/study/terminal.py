"""What the program says to its user: libraries kept quiet, errors in one line, an exit status for each end."""

import os
import signal
import warnings
from collections.abc import Callable

import datasets
import transformers

from balora.errors import BALoraError
from balora.study.progress import console
from balora.study.run import Interrupted
from balora.utils.distributed import is_main_process


def quiet_libraries() -> None:
    """Keep libraries' notices and bars off the terminal; errors and our own warnings stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not is_main_process():
        warnings.filterwarnings("ignore")


def report_errors(action: Callable[[], object]) -> int:
    """Run an action of the program and say in one line what went wrong; the status to exit with."""
    try:
        action()
    except BALoraError as error:
        console.print(f"balora: error: {one_line(error)}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except Interrupted as stop:
        if is_main_process():
            console.print(f"balora: {stop}; the same command goes on from there", markup=False, highlight=False)
        return 128 + stop.number
    except KeyboardInterrupt:
        console.print("balora: stopped before there was anything to save; the same command begins again")
        return 128 + signal.SIGINT
    return 0


def one_line(said: object) -> str:
    """What is said in one line, without what a terminal would obey: errors quote data and names of strangers."""
    line = " ".join(part for line in str(said).splitlines() if (part := line.strip()))
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
