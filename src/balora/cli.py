"""The program: `balora train RECIPE`, `balora compare RECIPE`, `balora quickstart`."""

import sys
from importlib.resources import files
from pathlib import Path

#: Settings whose entries hold settings themselves.
GROUPS = ("tasks", "method_settings")
USAGE = """balora: low-rank fine-tuning that keeps what the model knew

  balora train RECIPE [--key value …]     fine-tune with one method and one seed
  balora compare RECIPE [--key value …]   several methods × seeds on the same work: one table, one page
  balora quickstart [--key value …]       compare on a small synthetic world, in minutes, on a CPU

A recipe is a YAML file of settings; every one can be given on the command line instead. `balora COMMAND --help`
explains them all. The same command run again goes on where it was stopped.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the program; the exit status is 0, 2 for a user's mistake, 128 + signal when stopped."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    command, arguments = argv[0], argv[1:]
    if command not in ("train", "compare", "quickstart"):
        print(f"balora: error: unknown command {command!r}; there are train, compare and quickstart", file=sys.stderr)
        return 2
    # Importing torch and its libraries takes seconds: not before the command is known to be one.
    from balora.study.terminal import quiet_libraries, report_errors

    quiet_libraries()
    return report_errors(lambda: run(command, arguments))


def run(command: str, arguments: list[str]) -> None:
    """Read the recipe and do what the command says."""
    from balora.errors import BALoraError
    from balora.study import compare, run_cell
    from balora.study.run_dir import claimed

    if command == "quickstart":
        packaged = files("balora") / "recipes" / "quickstart.yaml"
        arguments = [str(packaged), "--output_dir=outputs/quickstart", *arguments]
    recipe = parse(command, arguments)
    if command == "train":
        if recipe.tasks:
            raise BALoraError("tasks: `balora train` trains on one task; use `balora compare` for several")
        with claimed(recipe) as directory:
            runs = [run_cell(recipe, recipe.method, recipe.seed, directory)]
        where = f"adapter: {recipe.output_dir}"
    else:
        runs = compare(recipe)
        where = f"report: {Path(recipe.output_dir) / 'report.html'}"
    show(runs, where)


def parse(command: str, arguments: list[str]) -> "Recipe":  # noqa: F821
    """The recipe that the arguments give: its file first, then what the command line sets.

    Raises:
        BALoraError: If a key is unknown or a value has the wrong type.
    """
    from argparse import ArgumentError
    from dataclasses import replace

    from jsonargparse import ArgumentParser, get_loader, set_loader

    from balora.errors import BALoraError
    from balora.recipe import Recipe, read_recipe
    from balora.world import WorldConfig

    # Values are read as YAML, in which a column called "#1 String" would be a comment and so null.
    yaml_loader = get_loader("yaml")
    set_loader("recipe", lambda text: text if text.startswith("#") and "\n" not in text else yaml_loader(text))
    usage = f"balora {command} RECIPE [--key value …]"
    parser = ArgumentParser(prog=f"balora {command}", usage=usage, exit_on_error=False, parser_mode="recipe")
    parser.add_class_arguments(Recipe)
    parser.add_argument("--recipe", action="config", help="The recipe's file; RECIPE in first place is the same.")
    if arguments and not arguments[0].startswith("-"):
        read_recipe(arguments[0])
        arguments = ["--recipe", arguments[0], *arguments[1:]]
    try:
        settings = parser.parse_args(arguments).as_dict()
        settings.pop("recipe")
        if settings["world"] is not None:
            settings["world"] = WorldConfig(**settings["world"])
        recipe = Recipe(**settings)
        return replace(recipe, **{group: _typed(parser, group, settings[group]) for group in GROUPS})
    except (ArgumentError, ValueError, TypeError) as error:
        raise error if isinstance(error, BALoraError) else BALoraError(_cause(str(error))) from error


def _typed(parser: "ArgumentParser", group: str, entries: dict[str, dict]) -> dict[str, dict]:  # noqa: F821
    """The settings inside tasks or methods, read as those at the top level are."""
    typed = {}
    for name, own in entries.items():
        try:
            typed[name] = {key: parser.parse_object({key: value}, defaults=False)[key] for key, value in own.items()}
        except Exception as error:
            raise ValueError(f"{group}: {name}: {_cause(str(error))}") from error
    return typed


def _cause(message: str) -> str:
    """jsonargparse's explanation in one line: the first cause it lists, behind the key it is about."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    causes = [line[2:] for line in lines if line.startswith("- ")]
    return " ".join([lines[0], *causes[:1]]) if causes else " ".join(lines)


def show(runs: list["Run"], where: str) -> None:  # noqa: F821
    """Print one table per task, and where the rest lies."""
    from rich.console import Console

    from balora.report import rich_table, summarize

    console = Console()
    for summary in summarize(runs):
        console.print(rich_table(summary))
    console.print(where, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
