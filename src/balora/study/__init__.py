"""Running recipes: one cell (a method and a seed), or a study of many, each resumable and none overwritten."""

from balora.study.cell import Interrupted, run_cell
from balora.study.compare import compare

__all__ = ["Interrupted", "compare", "run_cell"]
