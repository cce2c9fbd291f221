"""From the command line to a recipe: its file first, then what the arguments set, every value checked for its type."""

import re
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from balora.data.columns import shortened
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.checks import refuse_unknown
from balora.world import WorldConfig
from balora.world.reading import ReadingConfig

#: How deep settings may lie in one another, and how many there may be, an alias's counted wherever it stands.
DEEPEST, LARGEST = 32, 100_000
#: A NUL, which ends a path, and half of a surrogate pair, which YAML can spell and UTF-8 cannot.
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
#: Settings whose entries hold settings themselves.
GROUPS = ("tasks", "method_settings")
#: Settings that are the knobs of a world.
WORLDS = {"world": WorldConfig, "reading_world": ReadingConfig}


def parse(command: str, arguments: list[str], extra: type | None = None) -> tuple[Recipe, Any]:
    """The recipe that the arguments give, and the command's own settings beside it.

    Args:
        command: Name of the command, for its help.
        arguments: `RECIPE [--key value …]`.
        extra: Dataclass of settings that the command has beside a recipe's.

    Returns:
        The recipe, and an instance of `extra`, `None` where there is none.

    Raises:
        BALoraError: If a key is unknown or a value has the wrong type.
    """
    parser = command_parser(command, "RECIPE")
    if extra is not None:
        parser.add_class_arguments(extra)
    parser.add_class_arguments(Recipe)
    parser.add_argument("--recipe", action="config", help="The recipe's file; RECIPE in first place is the same.")
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--recipe", arguments[0], *arguments[1:]]
    for path in files_given(arguments, "--recipe"):
        read_recipe(path)
    try:
        settings = parser.parse_args(arguments).as_dict()
        settings.pop("recipe")
        own = None
        if extra is not None:
            own = extra(**without_nulls(extra, {field.name: settings.pop(field.name) for field in fields(extra)}))
        for name, knobs in WORLDS.items():
            if settings[name] is not None:
                settings[name] = knobs(**without_nulls(knobs, settings[name]))
        recipe = Recipe(**without_nulls(Recipe, settings))
        typed = {group: _typed(parser, group, getattr(recipe, group)) for group in GROUPS}
        typed["auxiliary"] = _typed(parser, "auxiliary", {"rows": recipe.auxiliary})["rows"]
        # A sweep has lists of what elsewhere stands alone.
        typed["sweep"] = {
            key: [_typed(parser, "sweep", {key: {key: value}})[key].get(key) for value in values]
            for key, values in recipe.sweep.items()
        }
        for key, values in typed["sweep"].items():
            if None in values and not _takes_null(Recipe, key):
                raise BALoraError(f"sweep: {key}: null is none of its values; take it out of the list")
        return replace(recipe, **typed), own
    except (ArgumentError, ValueError, TypeError, RecursionError) as error:
        raise error if isinstance(error, BALoraError) else BALoraError(cause(str(error))) from error


def files_given(arguments: list[str], option: str) -> list[str]:
    """The files that follow an option, apart or joined by `=`."""
    joined = [argument.removeprefix(f"{option}=") for argument in arguments if argument.startswith(f"{option}=")]
    return joined + [path for name, path in pairwise(arguments) if name == option]


def command_parser(command: str, positional: str) -> ArgumentParser:
    """A parser for the settings of a command, which are read as YAML.

    Args:
        command: Its name.
        positional: What stands in first place, for the help.
    """
    # Values are read as YAML, in which a column called "#1 String" would be a comment and so null.
    yaml_loader = get_loader("yaml")
    set_loader(
        "recipe",
        lambda text: text if text.startswith("#") and "\n" not in text else refuse_endless(yaml_loader(text)),
        # Of a template with colons, say, which is then text as it stands, as a 31st of February is.
        exceptions=(yaml.YAMLError, ValueError, RecursionError),
    )
    usage = f"balora {command} {positional} [--key value …]"
    return ArgumentParser(prog=f"balora {command}", usage=usage, exit_on_error=False, parser_mode="recipe")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The settings written in a recipe file, unknown keys refused.

    Raises:
        BALoraError: If the file is missing, is not YAML, or has a key no recipe has.
    """
    settings = read_settings(path, Recipe)
    for name, knobs in WORLDS.items():
        if isinstance(settings.get(name), dict):
            refuse_unknown(f"{path}: {name}", settings[name], knobs)
    return settings


def read_settings(path: str | Path, schema: type) -> dict[str, Any]:
    """The settings written in a file, such as a recipe, keys that are no field of the schema refused.

    Raises:
        BALoraError: If the file is missing, is not YAML, or has another key.
    """
    what, example = ("recipe", "learning_rate: 0.001") if schema is Recipe else ("file", "own_texts: 64")
    try:
        settings = refuse_endless(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise BALoraError(f"{path}: cannot read this {what} ({error.strerror})") from error
    except BALoraError as error:
        raise BALoraError(f"{path}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BALoraError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise BALoraError(f"{path}: a {what} is a mapping of settings, such as `{example}`")
    refuse_unknown(str(path), settings, schema)
    return settings


def refuse_endless(settings: Any) -> Any:
    """The same settings, unless aliases make them endless or huge, or a text in them can stand in no file.

    Raises:
        BALoraError: If so.
    """
    waiting, seen = [(settings, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST or seen > LARGEST:
            raise BALoraError(
                f"settings within settings, more than {DEEPEST} deep or {LARGEST:,} in all; no alias (*name) may "
                "stand inside what it stands for, nor multiply it"
            )
        if isinstance(value, dict | list):
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            waiting.extend((one, depth + 1) for one in inner)
        elif isinstance(value, str) and UNWRITABLE.search(value):
            raise BALoraError(f"{shortened(value)} holds a character that no file can hold; leave it out")
    return settings


def _typed(parser: ArgumentParser, group: str, entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings inside tasks or methods, read as those at the top level are."""
    typed = {}
    for name, own in entries.items():
        try:
            read = {key: parser.parse_object({key: value}, defaults=False)[key] for key, value in own.items()}
        except (ArgumentError, ValueError, TypeError) as error:
            raise ValueError(f"{group}: {name}: {cause(str(error))}") from error
        typed[name] = without_nulls(Recipe, read)
    return typed


def without_nulls(schema: type, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that are null and cannot be, as a key with nothing behind it: their defaults stand.

    Args:
        schema: The dataclass that the settings are for.
        settings: As parsed, where jsonargparse lets any of them be null.
    """
    return {name: value for name, value in settings.items() if value is not None or _takes_null(schema, name)}


def _takes_null(schema: type, name: str) -> bool:
    return type(None) in get_args(get_type_hints(schema).get(name))


def keyword_arguments(function: Callable, settings: dict[str, Any], *, given: set[str]) -> dict[str, Any]:
    """Settings as a function's keyword arguments, checked for their names and types, its defaults filled in.

    Args:
        function: With typed arguments, each described in its docstring.
        settings: By the arguments' names.
        given: Arguments that are none of the settings.

    Raises:
        BALoraError: If a name is unknown, an argument is missing, or a value has the wrong type.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function, skip=given)
    try:
        return parser.parse_object(settings).as_dict()
    except (ArgumentError, ValueError, TypeError) as error:
        raise BALoraError(cause(str(error))) from error


def cause(message: str) -> str:
    """jsonargparse's explanation in one line: the first cause it lists, behind the key it is about."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    causes = [line[2:] for line in lines if line.startswith("- ")]
    said = " ".join([lines[0], *causes[:1]]) if causes else " ".join(lines)
    return said if len(said) <= 1000 else f"{said[:999]}…"  # it quotes values whole
