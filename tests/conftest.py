"""For every test: OpenMP threads sleep while they wait, as the server has it; on CI a missing package is a failure."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_sessionfinish(session, exitstatus):
    """On CI a test that skips because a package is missing is a failure: the README's command installs them all."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    missing = sorted({str(report.longrepr[2]) for report in skipped if "could not import" in str(report.longrepr)})
    if missing and os.environ.get("CI") and exitstatus == 0:
        reporter.write_line("missing packages: " + "; ".join(missing), red=True)
        session.exitstatus = 1
