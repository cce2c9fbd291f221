"""The recipe: every setting of a run or a study, read from files and the command line.

Each group of settings is a dataclass in a file of its own; `recipe.Recipe` composes them, `parse` reads them.
"""

from balora.recipe.recipe import Recipe

__all__ = ["Recipe"]
