"""From the command line to what an audit is asked for."""

from argparse import ArgumentError
from itertools import takewhile

from jsonargparse import ArgumentParser

from balora.arguments import cause
from balora.audit.settings import AuditSettings
from balora.errors import BALoraError


def parse_audit(arguments: list[str]) -> AuditSettings:
    """What `MODEL [ADAPTER] [--key value …]` asks for; `--config FILE` has such settings as YAML.

    Raises:
        BALoraError: If a key is unknown, a value has the wrong type, or there is no model.
    """
    usage = "balora audit MODEL [ADAPTER] [--key value …]"
    parser = ArgumentParser(prog="balora audit", usage=usage, exit_on_error=False)
    parser.add_argument("--config", action="config", help="A YAML file of these settings.")
    parser.add_class_arguments(AuditSettings)
    named = list(takewhile(lambda argument: not argument.startswith("-"), arguments[:2]))
    given = [f"--{name}={value}" for name, value in zip(("model", "adapter"), named, strict=False)]
    try:
        settings = parser.parse_args([*given, *arguments[len(named) :]]).as_dict()
    except (ArgumentError, ValueError, TypeError) as error:
        raise BALoraError(cause(str(error))) from error
    settings.pop("config")
    return AuditSettings(**settings)
