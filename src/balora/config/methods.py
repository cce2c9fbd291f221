"""Names of methods: an initialization and what is added to it. Python, recipes, saved adapters and reports share them.

lora, pissa …       an initialization alone: trained on the task's loss
lora+reg …          with the regularizers of BA-LoRA at their published weights; ba-lora is pissa+reg
qlora, qba-lora …   the same on a base in 4 bits
…+anchors           with self-anchors (`balora.anchors`)
…+swaps             with the counterfactual teacher (`balora.counterfactual`), where +reg or +anchors read a teacher
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from balora.config.initialization import FROM_DATA, INITIALIZATIONS, RESIDUAL, SELORA
from balora.config.published import PRESETS
from balora.errors import BALoraError


@dataclass(frozen=True)
class Method:
    """A method, as its name describes it.

    Attributes:
        initialization: Name of the adapter's initialization.
        regularized: Whether it has the regularizers of the outputs (`+reg`).
        four_bit: Whether the base is in 4 bits.
        loraplus: Whether the optimizer is LoRA+'s, with a higher learning rate for B.
        anchored: Whether it has self-anchors (`+anchors`).
        swapped: Whether its teacher is the counterfactual one (`+swaps`).
    """

    initialization: str
    regularized: bool = False
    four_bit: bool = False
    loraplus: bool = False
    anchored: bool = False
    swapped: bool = False

    @property
    def residual(self) -> bool:
        """Return whether the base weight loses what the adapter starts from."""
        return self.initialization in RESIDUAL

    @property
    def gated(self) -> bool:
        """Return whether each row's sentence embedding gates the adapter (SeLoRA)."""
        return self.initialization == SELORA

    @property
    def from_data(self) -> bool:
        """Return whether the adapter is initialized from batches."""
        return self.initialization in FROM_DATA

    @property
    def from_inputs(self) -> bool:
        """Return whether the initialization reads inputs without labels, so that any texts will do."""
        return self.from_data and self.initialization != "lora-ga"

    @property
    def taught(self) -> bool:
        """Return whether it has terms that read the teacher."""
        return self.regularized or self.anchored


#: In 4 bits, by the names in the literature: QLoRA (Dettmers et al. 2023), QDoRA, QPiSSA (Meng et al. 2024).
FOUR_BIT = ("lora", "dora", "pissa")
#: All methods by name, except for `+anchors` and `+swaps`, which may follow any of them.
METHODS: dict[str, Method] = {
    **{name: Method(name) for name in INITIALIZATIONS},
    **{f"{name}+reg": Method(name, regularized=True) for name in INITIALIZATIONS if name != "pissa"},
    "ba-lora": Method("pissa", regularized=True),
    "lora+": Method("lora", loraplus=True),
    **{f"q{name}": Method(name, four_bit=True) for name in FOUR_BIT},
    **{f"q{name}+reg": Method(name, regularized=True, four_bit=True) for name in FOUR_BIT if name != "pissa"},
    "qba-lora": Method("pissa", regularized=True, four_bit=True),
}
#: Other spellings of these names.
ALIASES = {"pissa+reg": "ba-lora", "qpissa+reg": "qba-lora"}
ANCHORS, SWAPS = "+anchors", "+swaps"


def find_method(name: str) -> Method | None:
    """Return the method of a name; `None` if it is not one, such as a baseline's."""
    rest = name.removesuffix(SWAPS)
    first = rest.removesuffix(ANCHORS)
    method = METHODS.get(ALIASES.get(first, first))
    return None if method is None else replace(method, anchored=first != rest, swapped=rest != name)


def method_name(method: Method) -> str:
    """Return the name of a method."""
    alone = replace(method, anchored=False, swapped=False)
    first = next(name for name, known in METHODS.items() if known == alone)
    return f"{first}{ANCHORS * method.anchored}{SWAPS * method.swapped}"


def renamed(name: str, **changes: str | bool) -> str:
    """Return the name of the method that differs from this one in some attributes of `Method`."""
    return method_name(replace(find_method(name), **changes))


def check_method(name: str, *, key: str = "method", others: Iterable[str] = ()) -> None:
    """Validate a method's name.

    Args:
        name: The name.
        key: The setting that holds it.
        others: Further names that are right, of baselines and presets.

    Raises:
        BALoraError: If it is unknown, with a name that is like it; or if nothing in the method reads the teacher that
            `+swaps` changes.
    """
    others = list(others)
    if name in others:
        return
    if name in PRESETS and name not in METHODS and not others:
        raise BALoraError(f"{key}: {name} is a method with settings; give balora.config.PRESETS[{name!r}]")
    method = find_method(name)
    if method is None:
        close = difflib.get_close_matches(name, [*METHODS, *ALIASES, *others, *_with_suffixes()], n=1)
        meant = f"; did you mean {close[0]!r}? There" if close else "; there"
        plain = [known for known in METHODS if not known.endswith("+reg")]
        raise BALoraError(
            f"{key}: unknown method {name!r}{meant} are {', '.join([*plain, *others])}, and +reg, {ANCHORS} and "
            f"{SWAPS} to add to the low-rank ones"
        )
    if method.swapped and not method.taught:
        anchored, regularized = replace(method, anchored=True), replace(method, regularized=True, loraplus=False)
        raise BALoraError(
            f"{key}: {name} has no term that reads the teacher, which {SWAPS} changes; use {method_name(anchored)} or "
            f"{method_name(regularized)}"
        )


def _with_suffixes() -> list[str]:
    return [f"{name}{more}" for name in METHODS for more in (ANCHORS, ANCHORS + SWAPS)]
