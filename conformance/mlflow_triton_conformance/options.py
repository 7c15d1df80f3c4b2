"""The suite's own options, on the command line, in the environment and in the ini file, as those of the servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from pytest_mlflow_triton import settings
from pytest_mlflow_triton.settings import Option, chosen, setting

if TYPE_CHECKING:
    import pytest

__all__ = [
    "EXPECTATIONS",
    "OPTIONS",
    "PROFILE",
    "REPORT",
    "SUBJECT",
    "TARGET",
    "given",
    "profile",
    "subject",
    "value",
]

Subject = Literal["plugin", "server"]
Profile = Literal["quick", "default", "soak"]

TARGET = Option(
    "--deployments-target",
    "the plugin under test: the one that MLflow finds for this target",
    "TARGET",
    default="triton",
)
SUBJECT = Option(
    "--subject",
    "what is under test: a plugin on its server, or the server alone, without plugin and MLflow server",
    choices=("plugin", "server"),
    noun="subject",
    default="plugin",
)
PROFILE = Option(
    "--conformance-profile",
    "how much is generated: quick (no test marked slow, 10 examples of each property), default (50), soak (2,000, "
    "others each time)",
    choices=("quick", "default", "soak"),
    noun="profile",
    default="default",
)
EXPECTATIONS = Option(
    "--conformance-expectations",
    "what the subject is known to fail (lines ID: reason) or to lack (lines lacks FEATURE: reason)",
    "FILE",
)
REPORT = Option(
    "--conformance-report",
    "where to write report.json, report.html, badge.svg and junit.xml (made if it is not there)",
    "DIR",
)
OPTIONS = (TARGET, SUBJECT, PROFILE, EXPECTATIONS, REPORT)


def given(config: pytest.Config) -> list[str]:
    """Return the options of the command line on which a test's result depends, to run it once more."""
    wanted = (it for it in (*settings.OPTIONS, TARGET, SUBJECT, PROFILE) if not it.is_flag)
    written = {it.flag: config.getoption(it.flag) for it in wanted}
    return [f"{flag}={text}" for flag, text in written.items() if text is not None]


def value(config: pytest.Config, option: Option) -> str:
    """Find an option's value; empty if there is none."""
    return setting(config, option).value


def subject(config: pytest.Config) -> Subject:
    """Find what is under test."""
    return cast("Subject", chosen(config, SUBJECT).value)


def profile(config: pytest.Config) -> Profile:
    """Find how much is generated."""
    return cast("Profile", chosen(config, PROFILE).value)
