"""Every method of the language family, one module each: ``Config`` (its knobs) and ``build(config, setting) -> Recipe``."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol, cast

from policydist.errors import UsageError, nearest

if TYPE_CHECKING:
    from policydist.language.recipe import Recipe, Setting


class Method(Protocol):
    """What each module of this package provides."""

    Config: type

    def build(self, config: Any, setting: Setting) -> Recipe: ...


def names() -> list[str]:
    """Slugs of all methods, baselines included."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(slug: str) -> Method:
    """The method's module.

    Raises:
        UsageError: for an unknown slug, with the nearest names.
    """
    if slug not in names():
        raise UsageError(f"no method {slug}: {nearest(slug, names())}")
    return cast(Method, importlib.import_module(f"{__name__}.{slug}"))


def plays_episodes(slug: str) -> bool:
    """Whether a response is an episode with a search engine for this method, in evaluation too. Its config then has the
    knobs ``corpus`` and ``retriever``.

    Raises:
        UsageError: for an unknown slug.
    """
    return bool(getattr(load(slug), "EPISODES", False))
