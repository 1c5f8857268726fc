"""OpenAI's responses: conversations of items, answers that are kept, and a stream of typed events."""

from daemon.http.api import Api, Routes


def _load() -> Routes:
    from daemon.http.responses.routes import ROUTES

    return ROUTES


API = Api(
    "OpenAI responses", claims=lambda connection: f"{connection.url.path}/".startswith("/v1/responses/"), load=_load
)
