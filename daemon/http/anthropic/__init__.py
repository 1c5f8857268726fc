"""Anthropic's API: messages, the count of their tokens, models."""

from starlette.requests import HTTPConnection

from daemon.http.api import Api, Routes


def _claims(connection: HTTPConnection) -> bool:
    """Tell the API's requests. Models have the same path as OpenAI's; SDKs send their version."""
    path = str(connection.scope["path"])
    models = path == "/v1/models" or path.startswith("/v1/models/")
    # With /v1 in the base URL of its SDKs the path has it twice: the error is read by them.
    return path.startswith(("/v1/messages", "/v1/v1/messages")) or (
        models and "anthropic-version" in connection.headers
    )


def _load() -> Routes:
    from daemon.http.anthropic.routes import ROUTES

    return ROUTES


API = Api("Anthropic", claims=_claims, load=_load)
"""It is told from OpenAI's by its paths, and by the version that its SDKs send."""
