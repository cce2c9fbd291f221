"""Running recipes: one cell (a method and a seed), or a study of many, each resumable and none overwritten."""

from balora.errors import Interrupted
from balora.study.compare import compare
from balora.study.run import run_cell

__all__ = ["Interrupted", "compare", "run_cell"]
