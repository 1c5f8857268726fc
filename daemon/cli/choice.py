"""A value of several on the command line: one that is none of them is refused with all, and with the nearest."""

from __future__ import annotations

import click

from daemon.shared.wording import did_you_mean


class Choice(click.Choice[str]):
    """Click's choice. Its refusal lists the values, and ends with a question for the nearest one."""

    def get_invalid_choice_message(self, value: object, ctx: click.Context | None) -> str:
        """Return why a value is refused."""
        text, near = super().get_invalid_choice_message(value, ctx), did_you_mean(str(value), self.choices)
        return f"{text} {near[:1].upper()}{near[1:]}".rstrip()
