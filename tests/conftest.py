"""For every test: OpenMP threads sleep while they wait, as the server has it; on CI a missing package is a failure.

Examples that Hypothesis makes up are the same in every run, and none is failed for taking its time: what a run says
depends on the code alone.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
settings.register_profile(
    "same", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread: for models this small, threads that wait for each other take ten times the work's own time.

    Of a module, so that what its fixtures make is summed up in the same order as what its tests make.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_sessionfinish(session, exitstatus):
    """On CI a test that skips because a package is missing is a failure: the README's command installs them all."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    missing = sorted({str(report.longrepr[2]) for report in skipped if "could not import" in str(report.longrepr)})
    if missing and os.environ.get("CI") and exitstatus == 0:
        reporter.write_line("missing packages: " + "; ".join(missing), red=True)
        session.exitstatus = 1
