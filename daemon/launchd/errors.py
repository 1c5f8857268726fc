"""Exceptions of the service. Each text is a sentence for the user: the reason, and the fix."""

from __future__ import annotations


class ServiceError(Exception):
    """The service did not reach the requested state."""


class AgentError(ServiceError):
    """The service cannot be installed with these settings, or the installed plist is not that of this program."""


class LaunchctlError(ServiceError):
    """launchctl refused, or does not exist; the text quotes its output."""
