"""Where the tests build simulators: one folder that later runs find again, its content keyed by source and flags."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def build_dir(request: pytest.FixtureRequest) -> Path:
    """Folder of finished simulators."""
    return request.config.rootpath / "build" / "simulators"
