"""For every test: OpenMP's threads sleep while they wait, as the server has it (two cores are shared with the tests)."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
