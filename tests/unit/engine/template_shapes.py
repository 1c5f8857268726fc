"""Shapes of templates, read as the engine reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import jinja2.meta
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from daemon.engine.prompt.template_probe import Probe, variables_read
from daemon.engine.prompt.template_shape import TemplateShape


def shape_of(template: str, tries: int = 1000) -> TemplateShape:
    """Return the shape of a template that is tried so many times at most."""
    used = count(1)

    def render(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        return rendered(template, messages, options)

    return Probe(render, template, lambda: next(used) <= tries).shape(read(template))


def rendered(template: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """Return a conversation as transformers renders it."""
    (text,), _ = render_jinja_template([list(messages)], chat_template=template, **options)
    return str(text)


def read(template: str) -> frozenset[str]:
    """Return the variables that a template reads."""
    tree = _compile_jinja_template(template).environment.parse(template)
    return variables_read(tree, jinja2.meta.find_undeclared_variables(tree))
