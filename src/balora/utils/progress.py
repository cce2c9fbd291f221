"""Progress of everything that may take long: reported here by any room, and shown by the program's terminal.

In a Python session nothing is shown, unless you pass a display of your own to `show_progress_with`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import length_hint
from typing import TypeVar

Item = TypeVar("Item")
#: Called with a description and the number of steps, `None` if unknown; its value is called after each step.
Display = Callable[[str, int | None], AbstractContextManager[Callable[[], None]]]

_display: Display | None = None


def show_progress_with(display: Display | None) -> None:
    """Set the display of this process; `None` for none."""
    global _display
    _display = display


def tracked(items: Iterable[Item], description: str, *, total: int | None = None) -> Iterator[Item]:
    """Iterate over items and report each that is done.

    Args:
        items: What is worked on.
        description: What is done, as the display shows it.
        total: Number of items; `None` for the length of `items`, if it has one.
    """
    with showing(description, total or length_hint(items) or None) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def showing(description: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Context manager: report work of `total` steps; call its value after each."""
    if _display is None:
        yield lambda: None
        return
    with _display(description, total) as advance:
        yield advance


@contextmanager
def working(description: str) -> Iterator[None]:
    """Context manager: report work that has no steps, such as loading a model."""
    with showing(description):
        yield
