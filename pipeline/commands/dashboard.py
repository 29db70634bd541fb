"""`fewstep dashboard`: studies in a browser, while searches write into them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.errors import ConfigurationError
from fewstep.pipeline.commands.options import place

NAME = "dashboard"
HOST, PORT = "127.0.0.1", 8740


def command(
    out: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[OUT]...",
            parser=place,
            help="folders of studies, or folders that hold such folders [default: runs]",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", help="address to listen on; any but this machine's own shows all of it to the network"),
    ] = HOST,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="port to listen on; 0 takes a free one")] = PORT,
) -> None:
    """Show any number of studies in a browser, read-only and live; ends with Ctrl-C.

    Only this machine is answered. With another --host, everybody who reaches it reads everything: there is no password.
    """
    from fewstep.dashboards.web.server import is_loopback, serve

    if not host:
        raise ConfigurationError("--host is empty: give an address, as 127.0.0.1")
    if not is_loopback(host):
        typer.echo(f"warning: everybody who reaches {host} can read these studies", err=True)
    serve(out or [Path("runs")], host, port, lambda address: typer.echo(f"dashboard: {address}"))
