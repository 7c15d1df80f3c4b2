"""Properties whose every example takes a server seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from hypothesis import HealthCheck, Phase, seed, settings

from mlflow_triton_conformance import options, plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pytest

__all__ = ["costly"]

F = TypeVar("F", bound="Callable[..., None]")


def costly(config: pytest.Config, examples: Mapping[str, int]) -> Callable[[F], F]:
    """Give a property the run's seed and so many examples; one that fails is made smaller in the profile soak alone.

    Args:
        config: pytest's.
        examples: How many, by the profile.
    """
    profile = options.profile(config)
    left_out = () if profile == "soak" else (Phase.shrink, Phase.explain)
    phases = settings().phases

    def decorate(function: F) -> F:
        chosen = settings(
            max_examples=examples[profile],
            phases=[it for it in phases if it not in left_out],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        return seed(config.stash[plugin.SEED])(chosen(function))

    return decorate
