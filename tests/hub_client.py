"""The real huggingface_hub client, pointed at a server of the tests."""

import socket
from pathlib import Path
from typing import NoReturn

import pytest
from servers import HubServer

TOKEN = "hf_secretOfTheTests"


def use(server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points the client at the server, with an empty cache and no token."""
    import huggingface_hub.constants as constants

    template = "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + template,
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def block_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nothing connect to anything any more."""

    def refuse(*_: object) -> NoReturn:
        raise ConnectionRefusedError("no connections in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
