"""Settings of a whole study: which runs it has, and where they are kept."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balora.config.ranges import Count, Seed
from balora.errors import BALoraError
from balora.report.results import PRETRAINED

#: Bytes of a name that is a folder's too; file systems have room for 255, and suffixes take some.
LONGEST_NAME = 200


@dataclass
class Study:
    """The study: which runs, and where they are kept."""

    name: str = "run"
    """Name of the work, as tables and results show it."""
    output_dir: str | None = None
    """Folder of the run. The same command resumes what it holds, and a study may grow there by methods, seeds and
    tasks; other settings are refused."""
    methods: list[str] = field(default_factory=lambda: ["lora", "pissa", "ba-lora"])
    """Methods that `balora compare` trains: names as for method, or your own names that method_settings explains."""
    method_settings: dict[str, dict] = field(default_factory=dict)
    """Settings of single methods, by name, over the task's and the recipe's. With a `method` among them, the name is
    your own for that method with these settings (`{task-only: {method: ba-lora, spectral_weight: 0}}`)."""
    baseline: str | None = None
    """Method that the report compares the others with; null for the first of `methods`."""
    sweep: dict[str, list] = field(default_factory=dict)
    """Settings to vary, each with its values (`{r: [1, 8, 64]}`): `balora sweep` trains every method at every
    combination."""
    worlds: dict[str, list[int | float]] = field(default_factory=dict)
    """Parameters of the controlled world to vary, one at a time, each with its values (`{pronoun_skew: [0.5, 1.0]}`):
    every method is trained in `world` as it is and in a world of each value, and compared with the model that was
    pretrained there."""
    tasks: dict[str, dict] = field(default_factory=dict)
    """Several tasks for `balora compare`, by name: for each the settings in which it differs."""
    task: str | None = None
    """Of several tasks, the one for `balora train` and `balora calibrate`."""
    seed: Seed = 42
    """Seed of `balora train`: head, adapter initialization, data order, dropout."""
    seeds: list[Seed] = field(default_factory=lambda: [42])
    """Seeds of `balora compare`."""
    jobs: Count = 1
    """Runs that `balora compare` trains at once."""

    def check_study(self) -> None:
        """Validate names of methods, tasks and seeds.

        Raises:
            BALoraError: If one is missing, given twice, or cannot name a folder.
        """
        for key in ("methods", "seeds"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise BALoraError(f"{key}: {values} must name at least one, and none twice")
        if self.baseline is not None and self.baseline not in self.methods:
            raise BALoraError(f"baseline: {self.baseline!r} is not among the methods {', '.join(self.methods)}")
        for key, names in (("methods", self.methods), ("tasks", self.tasks)):
            for name in names:
                check_folder_name(key, name)
        for setting in ("sweep", "worlds"):
            for key, values in getattr(self, setting).items():
                if not values or len({repr(value) for value in values}) < len(values):
                    raise BALoraError(f"{setting}: {key}: {values} must have at least one value, and none twice")


def check_folder_name(key: str, name: Any) -> None:
    """Validate a name that is a folder's too.

    Raises:
        BALoraError: If it is empty, too long, holds slashes, or is the untouched model's.
    """
    if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
        raise BALoraError(f"{key}: {name!r} names a folder too, so it must be text without slashes")
    if len(name.encode()) > LONGEST_NAME:
        raise BALoraError(f"{key}: {name[:40]!r}… names a folder too; use at most {LONGEST_NAME} letters")
    if key == "methods" and name == PRETRAINED:
        raise BALoraError(f"methods: {name!r} is the untouched model, which is always measured; use another name")
