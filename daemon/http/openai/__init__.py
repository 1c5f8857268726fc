"""OpenAI's API: models, chat completions, completions, embeddings."""

from daemon.http.api import Api, Routes


def _load() -> Routes:
    from daemon.http.openai.routes import ROUTES

    return ROUTES


API = Api("OpenAI", claims=lambda _: True, load=_load, fallback=True)
"""It gets what no other API claims."""
