"""How the fuzz tests draw: the same examples each time, and none kept."""

from hypothesis import HealthCheck, settings

fuzzed = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
