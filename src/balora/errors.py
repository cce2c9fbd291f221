"""The errors a user can cause, kept apart from our own bugs.

`BALoraError` carries one sentence that names the file, row or field and what would be right. The program prints it
without a traceback and exits with status 2; a library user catches it as the `ValueError` it is.
"""


class BALoraError(ValueError):
    """A mistake in what the user gave: a recipe, a file, a model, a setting."""


class NonFiniteLossError(BALoraError):
    """A loss, gradient or weight became NaN or infinite; training stopped before the step was applied."""
