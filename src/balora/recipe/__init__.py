"""The recipe: every setting of a run or a study, read from a file and the command line."""

from balora.recipe.recipe import Recipe

__all__ = ["Recipe"]
