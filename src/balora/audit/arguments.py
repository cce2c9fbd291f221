"""Settings of an audit from the command line."""

from argparse import ArgumentError
from itertools import takewhile

from balora.audit.settings import AuditSettings
from balora.errors import BALoraError
from balora.recipe.parse import cause, command_parser, files_given, read_settings, without_nulls


def parse_audit(arguments: list[str]) -> AuditSettings:
    """Parse `MODEL [ADAPTER] [--key value …]`; `--config FILE` has such settings as YAML.

    Raises:
        BALoraError: If a key is unknown, a value has the wrong type, or there is no model.
    """
    parser = command_parser("audit", "MODEL [ADAPTER]", [AuditSettings])
    parser.add_argument("--config", action="config", help="A YAML file of these settings.")
    named = list(takewhile(lambda argument: not argument.startswith("-"), arguments[:2]))
    given = [f"--{name}={value}" for name, value in zip(("model", "adapter"), named, strict=False)]
    further = arguments[len(named) :]
    for path in files_given(further, "--config"):
        read_settings(path, AuditSettings)
    try:
        # MODEL and ADAPTER come last, so that they override a file's.
        settings = parser.parse_args([*further, *given]).as_dict()
    except (ArgumentError, ValueError, TypeError) as error:
        raise BALoraError(cause(str(error))) from error
    settings.pop("config")
    return AuditSettings(**without_nulls(AuditSettings, settings))
