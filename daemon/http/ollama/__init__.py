"""Ollama's API: chat, generate, embeddings, and the models of this machine."""

from daemon.http.api import Api, Routes


def _load() -> Routes:
    from daemon.http.ollama.routes import ROUTES

    return ROUTES


API = Api(
    "Ollama",
    claims=lambda connection: connection.url.path == "/" or connection.url.path.startswith("/api/"),
    load=_load,
)
