"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click
from click.core import ParameterSource

from audit_stream.settings import VARIABLES

DEFAULT_URL = "http://127.0.0.1:8093"

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]


def url_option() -> Decorator[Any]:
    """`--url`, and the token that goes with it: `given_token` has that where the server is asked."""

    def decorate(function: Any) -> Any:
        for option in (_token_file, _token, _url):
            function = option(function)
        return function

    return decorate


_TOKEN = "audit_stream.token"


def _keep_token(ctx: click.Context, parameter: click.Parameter, token: str | None) -> None:
    if token is not None and _TOKEN in ctx.meta:
        raise click.UsageError("Choose one of --token and --token-file.", ctx)
    if token is not None:
        ctx.meta[_TOKEN] = token


def _read_token(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        lines = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.", ctx) from error
    if len(lines) != 1:
        raise click.BadParameter(f"{path} is to hold one token, and nothing else.", ctx)
    _keep_token(ctx, parameter, lines[0])


def given_token() -> str | None:
    """The token that was given as a flag; None: the environment may have one."""
    ctx = click.get_current_context(silent=True)
    token: str | None = ctx.meta.get(_TOKEN) if ctx else None
    return token


_url = click.option(
    "--url",
    envvar="AUDIT_STREAM_URL",
    default=DEFAULT_URL,
    metavar="URL",
    help=f"address of the server\n\nAUDIT_STREAM_URL, default: {DEFAULT_URL}",
)
_token = click.option(
    "--token",
    metavar="TOKEN",
    expose_value=False,
    callback=_keep_token,
    help="token for the server. Who lists processes sees it: better AUDIT_STREAM_TOKEN, or --token-file",
)
_token_file = click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    expose_value=False,
    callback=_read_token,
    help="file that holds the token",
)


json_option = click.option("--json", "as_json", is_flag=True, help="JSON, also on a terminal")

kind_option = click.option("--kind", metavar="KIND", help="only events of this kind")
source_option = click.option("--source", metavar="SOURCE", help="only events of this source")


def redis_url_option(*envvars: str) -> Decorator[Any]:
    """`--redis-url`; from the environment only where a command can do nothing else."""
    if envvars:
        text = f"Redis that holds the chain\n\n{' or '.join(envvars)}"
    else:
        text = "Redis that holds the chain: it is asked itself, instead of a server"
    return click.option(
        "--redis-url",
        envvar=list(envvars) or None,
        metavar="URL",
        callback=_checked("AUDIT_STREAM_REDIS_URL"),
        help=text,
    )


def choose_one(ctx: click.Context, *names: str) -> None:
    """Raises UsageError when more than one of the options was given as a flag."""
    given = [name for name in names if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if len(given) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"Choose one of {flags}.", ctx)


def setting_option(name: str) -> Decorator[Any]:
    """The flag of one of the server's settings, read and checked as the server does."""
    variable = VARIABLES[name]
    return click.option(
        f"--{variable.field.replace('_', '-')}",
        envvar=name,
        default=variable.default,
        metavar=variable.field.upper(),
        callback=_checked(name),
        help=f"{variable.help}\n\n{name}, default: {variable.default}",
    )


def _checked(name: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def check(_: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        if not text:
            return None
        value: Any = VARIABLES[name].parse(parameter.opts[0], text)
        return value

    return check
