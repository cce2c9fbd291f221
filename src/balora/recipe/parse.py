"""Parse a command line into a recipe: its files first, then what the arguments set, every value checked for its type.

Several files may be given, `balora train mine.yaml --recipe mine.calibrated.yaml`; later ones win.
"""

import re
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Collection
from dataclasses import fields, replace
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader, set_loader, set_parsing_settings

from balora.config import Initialization, Regularizers
from balora.errors import BALoraError
from balora.recipe.adapter import Adapter
from balora.recipe.dataset import AnchorTexts
from balora.recipe.recipe import PARTS, Recipe, did_you_mean, refuse_unknown
from balora.recipe.training import Training
from balora.world import WorldConfig
from balora.world.reading import ReadingConfig

#: Settings whose entries hold settings themselves.
GROUPS = ("tasks", "method_settings")
#: Settings that are the parameters of a world.
WORLDS = {"world": WorldConfig, "reading_world": ReadingConfig}
#: Types, as error messages name them.
KINDS = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}

_TRAINING_ONLY = {
    f.name for part in (Adapter, Initialization, Regularizers, AnchorTexts, Training) for f in fields(part)
} - {"method", "per_device_eval_batch_size", "bf16", "training_arguments", "quantization_config", "task_names"}
#: Settings that a command does not use, which its `--help` leaves out. A recipe may have them all the same, so that
#: one file serves several commands.
UNUSED = {
    "train": {"methods", "baseline", "seeds", "jobs", "sweep", "worlds", "task_metric", "drift_metric"},
    "calibrate": {"methods", "baseline", "sweep", "worlds", "drift_metric"},
    "evaluate": {"methods", "baseline", "seeds", "jobs", "sweep", "worlds", "task_metric", "drift_metric"}
    | _TRAINING_ONLY,
    **{command: {"method", "seed", "task"} for command in ("compare", "sweep", "quickstart")},
}


def parse(command: str, arguments: list[str], extra: type | None = None) -> tuple[Recipe, Any]:
    """Parse the recipe that the arguments give, and the command's own settings.

    Args:
        command: Name of the command, for its help.
        arguments: `RECIPE [--key value …]`.
        extra: Dataclass of settings that the command has beside a recipe's.

    Returns:
        The recipe, and an instance of `extra`; `None` without one.

    Raises:
        BALoraError: If a key is unknown or a value has the wrong type.
    """
    positional = "" if command == "quickstart" else "RECIPE"
    parser = command_parser(command, positional, [*([extra] if extra else []), *PARTS], UNUSED[command])
    parser.add_argument("--recipe", action="config", help="A recipe file; RECIPE in first place is the same.")
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--recipe", arguments[0], *arguments[1:]]
    refuse_unknown_options(parser, arguments)
    for path in files_given(arguments, "--recipe"):
        read_recipe(path)
    try:
        settings = parser.parse_args(arguments).as_dict()
        settings.pop("recipe")
        own = None
        if extra is not None:
            own = extra(**without_nulls(extra, {field.name: settings.pop(field.name) for field in fields(extra)}))
        for name, schema in WORLDS.items():
            if settings[name] is not None:
                settings[name] = schema(**without_nulls(schema, settings[name]))
        recipe = Recipe(**without_nulls(Recipe, settings))
        typed = {group: _typed(parser, group, getattr(recipe, group)) for group in GROUPS}
        typed["auxiliary"] = _typed(parser, "auxiliary", {"rows": recipe.auxiliary})["rows"]
        # A sweep lists values of settings that elsewhere have one value.
        typed["sweep"] = {
            key: [_typed(parser, "sweep", {key: {key: value}})[key].get(key) for value in values]
            for key, values in recipe.sweep.items()
        }
        for key, values in typed["sweep"].items():
            if None in values and not _takes_null(Recipe, key):
                raise BALoraError(f"sweep: {key}: null is not a value of it; take it out of the list")
        return replace(recipe, **typed), own
    except (ArgumentError, ValueError, TypeError, RecursionError) as error:
        raise error if isinstance(error, BALoraError) else BALoraError(cause(str(error))) from error


def refuse_unknown_options(parser: ArgumentParser, arguments: list[str]) -> None:
    """Raise at an option that the parser does not have, abbreviations included, or at a value without one.

    Raises:
        BALoraError: Naming the option, and what it may have been meant to be.
    """
    options = [option.removeprefix("--") for option in parser._option_string_actions]
    names = [name for name in options if not name.endswith(("+", ".help"))]
    expected = False  # whether a value may follow
    for argument in arguments:
        if not argument.startswith("--"):
            if not expected and argument != "-h":
                raise BALoraError(
                    f"{argument!r}: no option stands before this value; write `--key value`, the value in quotes if "
                    "it has spaces"
                )
            expected = False
            continue
        name, equals, _ = argument.removeprefix("--").partition("=")
        # `--world.facts` sets a parameter of a world, and `--methods+` appends to a list.
        if name not in names and name.removesuffix("+").split(".")[0] not in names:
            meant = did_you_mean(name.replace("-", "_"), names)
            raise BALoraError(f"--{name}: unknown option{meant or f'; see {parser.prog} --help'}")
        expected = not equals


def files_given(arguments: list[str], option: str) -> list[str]:
    """Return the files that follow an option, as its own argument or joined by `=`."""
    joined = [argument.removeprefix(f"{option}=") for argument in arguments if argument.startswith(f"{option}=")]
    return joined + [path for name, path in pairwise(arguments) if name == option]


class _HelpFormatter(DefaultHelpFormatter):
    """Show a bounded number as `int, at least 1`, not as the `Annotated` type that declares it."""

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action).replace('Annotated[str, "path"]', "path")
        text = re.sub(r"Annotated\[str, 'path'\]", "path", text)
        return re.sub(r"Annotated\[(\w+), ((?:[^\[\]()]|[\[(][^\[\]()]*[\])])*)\]", r"\1, \2", text)


def command_parser(
    command: str, positional: str, parts: Collection[type], unused: Collection[str] = ()
) -> ArgumentParser:
    """Build a command's parser, which reads values as YAML.

    Args:
        command: Name of the command.
        positional: The positional arguments, for the help.
        parts: Dataclasses of the settings, a group of options each, their texts read from attribute docstrings.
        unused: Settings that the help leaves out.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # Values are read as YAML, in which a column called "#1 String" would be a comment and so null.
    yaml_loader = get_loader("yaml")
    set_loader(
        "recipe",
        lambda text: text if text.startswith("#") and "\n" not in text else yaml_loader(text),
        # A template with colons, or a date that does not exist, is then text as it stands.
        exceptions=(yaml.YAMLError, ValueError, RecursionError),
    )
    usage = " ".join(filter(None, ["balora", command, positional, "[--key value …]"]))
    parser = ArgumentParser(
        prog=f"balora {command}",
        usage=usage,
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode="recipe",
        formatter_class=_HelpFormatter,
    )
    for part in parts:
        parser.add_class_arguments(part, as_group=True)
    for action in parser._actions:
        if action.dest.split(".")[0] in unused:
            action.help = SUPPRESS
    return parser


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read the settings in a recipe file.

    Raises:
        BALoraError: If the file is missing, is not YAML, or has an unknown key.
    """
    settings = read_settings(path, Recipe)
    for name, schema in WORLDS.items():
        if isinstance(settings.get(name), dict):
            refuse_unknown(f"{path}: {name}", settings[name], schema)
    return settings


def read_settings(path: str | Path, schema: type) -> dict[str, Any]:
    """Read a YAML file of settings, such as a recipe.

    Raises:
        BALoraError: If the file is missing, is not YAML, or has a key that is not a field of the schema.
    """
    what, example = ("recipe", "learning_rate: 0.001") if schema is Recipe else ("file", "own_texts: 64")
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BALoraError(f"{path}: cannot read this {what} ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BALoraError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise BALoraError(f"{path}: a {what} is a mapping of settings, such as `{example}`")
    refuse_unknown(str(path), settings, schema)
    return settings


def _typed(parser: ArgumentParser, group: str, entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Parse the settings inside tasks or methods as those at the top level are."""
    typed = {}
    for name, own in entries.items():
        try:
            read = {key: parser.parse_object({key: value}, defaults=False)[key] for key, value in own.items()}
        except (ArgumentError, ValueError, TypeError) as error:
            raise ValueError(f"{group}: {name}: {cause(str(error))}") from error
        typed[name] = without_nulls(Recipe, read)
    return typed


def without_nulls(schema: type, settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out settings that are null and cannot be, like a key without a value: their defaults apply.

    Args:
        schema: The dataclass that the settings are for.
        settings: As parsed; jsonargparse lets any of them be null.
    """
    return {name: value for name, value in settings.items() if value is not None or _takes_null(schema, name)}


def _takes_null(schema: type, name: str) -> bool:
    return type(None) in get_args(get_type_hints(schema).get(name))


def keyword_arguments(function: Callable, settings: dict[str, Any], *, given: set[str]) -> dict[str, Any]:
    """Validate settings as a function's keyword arguments, and fill in its defaults.

    Args:
        function: With typed arguments, each described in its docstring.
        settings: By the arguments' names.
        given: Arguments that are not settings.

    Raises:
        BALoraError: If a name is unknown, an argument is missing, or a value has the wrong type.
    """
    names = [name for name in signature(function).parameters if name not in given]
    for name in settings:
        if name not in names:
            raise BALoraError(f"unknown {name!r}{did_you_mean(name, names) or '; use ' + ', '.join(names)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function, skip=given)
    try:
        return parser.parse_object(settings).as_dict()
    except (ArgumentError, ValueError, TypeError) as error:
        raise BALoraError(cause(str(error))) from error


def cause(message: str) -> str:
    """Shorten jsonargparse's explanation to one line: the key and the first cause."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    causes = [line[2:] for line in lines if line.startswith("- ")]
    said = " ".join([lines[0], *causes[:1]]) if causes else " ".join(lines)
    said = re.sub(r'^Parser key "([^"]*)":', r"\1:", said)
    said = re.sub(r"Expected an? <class '(\w+)'>", lambda found: f"expected {KINDS.get(found[1], found[1])}", said)
    said = re.sub(r"Expected an? typing\.Literal\[([^\]]*)\]", lambda found: f"expected one of {found[1]}", said)
    said = said.replace(". Got value: ", ", found ")
    return said if len(said) <= 1000 else f"{said[:999]}…"  # it quotes values whole
