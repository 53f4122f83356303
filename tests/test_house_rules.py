"""Lint, types and import rules: the tools that keep them, run as tests."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("blender_addon", "engine_bridge", "worldwarp_core")


def run(*command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint_is_clean():
    run("ruff", "check", *PACKAGES, "tests")


def test_formatting_is_the_formatter_s():
    run("ruff", "format", "--check", *PACKAGES, "tests")


def test_types_are_clean():
    run("mypy")


def test_the_import_rules_hold():
    lint_imports = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint_imports], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_runs_inside_blender_imports_no_torch():
    light = (
        "engine_bridge.client, engine_bridge.job_folder, worldwarp_core.cameras.files, worldwarp_core.pictures.exr, "
        "worldwarp_core.spec, worldwarp_core.splat_files.files"
    )
    heavy = "{'torch', 'numba', 'cv2', 'bpy', 'worldwarp_core.loop.pipeline'}"
    run_code = f"import sys, {light}; found = {heavy} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", run_code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
