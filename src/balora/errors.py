"""The errors a user can cause, kept apart from our own bugs.

`BALoraError` carries one sentence that names the file, row or field and what would be right. The program prints it
without a traceback and exits with status 2; a library user catches it as the `ValueError` it is.
"""

import signal


class BALoraError(ValueError):
    """A mistake in what the user gave: a recipe, a file, a model, a setting."""

    #: Exit status of the program.
    status = 2


class RunFailed(BALoraError):
    """A run of a study failed in its process for another reason than a user's mistake."""

    status = 1


class NonFiniteLossError(BALoraError):
    """A loss, gradient or weight became NaN or infinite; training stopped before the step was applied."""


class Interrupted(Exception):
    """A signal stopped a run after its checkpoint was saved.

    Attributes:
        number: The signal's.
        step: Optimizer steps done.
        during: What was stopped, and what is kept of it.
    """

    def __init__(self, number: int, step: int, during: str = "") -> None:
        after = f" after step {step}" if step else ""
        super().__init__(f"stopped by {signal.Signals(number).name}{after}{during and f' {during}'}")
        self.number, self.step = number, step


class WorkerDone(Exception):
    """Raised in every process but the main one once its part of a distributed run is done."""
