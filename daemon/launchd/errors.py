"""What can go wrong with the service. Each text is a sentence for the person who asked: why, and what to do."""

from __future__ import annotations


class ServiceError(Exception):
    """The service is not as it was asked to be."""


class AgentError(ServiceError):
    """It cannot be installed like that, or what is installed is not ours."""


class LaunchctlError(ServiceError):
    """launchctl refused, with its own words, or is not there."""
