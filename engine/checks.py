"""Settings of a generation that contradict each other: refused before a teacher is started.

Knows the configuration and the names of the templates; opens nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from engine import rule_settings
from engine.config import Config
from engine.errors import ConfigError


def check(settings: Config, templates: Collection[str]) -> None:
    """Refuse what can never come true.

    Raises: ConfigError that names the key.
    """
    _check_goal(settings, templates)
    _check_loops(settings)


def _check_goal(settings: Config, templates: Collection[str]) -> None:
    output, rules = settings.output, settings.filter
    for name, wanted in output.quotas.items():
        if name not in templates:
            known = ", ".join(sorted(templates)[:20])
            raise ConfigError(f"output.quotas: there is no template {name!r}; there are {known}")
        if rules.cap_key == "template" and 0 < rules.cap_per_template < wanted:
            raise ConfigError(
                f"output.quotas: {wanted} rows of {name!r} are wanted, and filter.cap_per_template keeps "
                f"{rules.cap_per_template} of a template; raise the cap, or set it to 0"
            )
    most = sum(output.quotas.values())
    limited = output.quotas and set(templates) <= output.quotas.keys()
    if limited and output.accepted is not None and most < output.accepted:
        raise ConfigError(
            f"output.accepted = {output.accepted} is more than the quotas of all templates together ({most}); "
            "raise output.quotas, or lower output.accepted"
        )


def _check_loops(settings: Config) -> None:
    loop = settings.sampling.end_loops
    if loop is None:
        return
    if loop.min_pattern_size > loop.max_pattern_size:
        raise ConfigError("sampling.end_loops: min_pattern_size is above max_pattern_size; lower it")
    if settings.teacher.backend != "vllm":
        raise ConfigError("sampling.end_loops is for teacher.backend = 'vllm'; take it out for another backend")
    if not any(isinstance(rule, rule_settings.Repetition) for rule in settings.filter.rules):
        raise ConfigError(
            'sampling.end_loops leaves answers that end in a loop; add [[filter.rules]] with use = "repetition", '
            "which rejects them"
        )
