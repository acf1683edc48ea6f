"""Settings of all tests: hypothesis tries the same examples every time, and a slow machine fails no test."""

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
