"""constraints.txt is the whole set that was tested together: nothing that the README installs is left to chance."""

from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = {
    canonicalize_name(name): version
    for name, version in (
        line.split("==") for line in (Path(__file__).parents[1] / "constraints.txt").read_text().split() if line
    )
}
EXTRAS = ("", "engine", "blender", "evaluation", "video", "test")


def needed():
    """Every installed distribution that the README's commands bring, with the version found."""
    found, todo = {}, [("worldwarp", extra) for extra in EXTRAS]
    while todo:
        name, extra = todo.pop()
        for line in requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            dependency = canonicalize_name(requirement.name)
            try:
                version = distribution(dependency).version
            except PackageNotFoundError:
                continue
            if dependency not in found:
                found[dependency] = version.split("+")[0]  # a local build of torch carries +cpu
                todo += [(dependency, e) for e in ("", *requirement.extras)]
    return found


def test_everything_that_is_installed_is_pinned_at_that_version():
    installed = needed()
    assert {"torch", "bpy", "pycolmap", "gsply", "cattrs"} <= set(installed)
    assert {name: version for name, version in installed.items() if PINS.get(name) != version} == {}
