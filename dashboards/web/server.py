"""Serving the dashboard until it is told to end."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

import uvicorn

from fewstep.dashboards.web.app import LOOPBACK, make_app
from fewstep.dashboards.web.decisions import prepare
from fewstep.errors import ConfigurationError

# Pages that wait for events would keep a server open for good.
_GRACE = 1


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host's sockets."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str) -> tuple[str, ...]:
    """Under which names the server may be asked for: on loopback its own, elsewhere any, as its user asked."""
    return (*LOOPBACK, host) if is_loopback(host) else ("*",)


def serve(folders: Sequence[Path], host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve studies beneath folders; `ready` gets the address. Returns when a signal ends it.

    ConfigurationError where a folder is not there, or the host or port cannot be listened on; port 0 is any free one.
    """
    app = make_app(folders, allowed_hosts(host))
    with _listening(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        Thread(target=prepare, daemon=True).start()
        ready(f"http://{name}:{listener.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=_GRACE, lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"--host {host}: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another --port, or 0 for any"
        ) from None
    return listener
