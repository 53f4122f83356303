"""A student that is moved as its teacher was."""

import pytest
import torch

from tests.support.tiny_preview import save_tiny_preview
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.preview.weights import read_network, save_network
from worldwarp_core.training.move import move_student


@pytest.fixture
def folders(tmp_path):
    """A student, its teacher then, and the teacher now, which moved by 0.25 everywhere in 3 steps."""
    student, before, teacher = (save_tiny_preview(tmp_path / name) for name in ("student", "before", "teacher"))
    found = read_network(before, "transformer")
    moved = {name: values + 0.25 for name, values in found.state.items()}
    steps = found.progress["steps"] + 3
    save_network(teacher, "transformer", moved, found.config, found.progress | {"steps": steps})
    found = read_network(student, "transformer")
    few = found.progress | {"sampler_steps": 7, "steps": 11, "figures": {"made_db": 20.0}}
    save_network(student, "transformer", {name: 2 * v for name, v in found.state.items()}, found.config, few)
    return student, before, teacher


def test_it_moves_by_as_much_and_keeps_what_it_learned(folders, tmp_path):
    move_student(*folders, tmp_path / "run")
    was, moved = (read_network(folder, "transformer") for folder in (folders[0], tmp_path / "run"))
    assert moved.config == was.config
    assert moved.progress["steps"] == 11 + 3
    assert moved.progress["sampler_steps"] == 7
    assert "figures" not in moved.progress
    for name, values in was.state.items():
        torch.testing.assert_close(moved.state[name], values + 0.25, atol=2e-3, rtol=2e-3)


def test_a_run_is_not_written_over(folders, tmp_path):
    with pytest.raises(WorldWarpError, match="already") as caught:
        move_student(*folders, folders[1])
    assert caught.value.code == "bad_settings"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resume.safetensors").touch()
    with pytest.raises(WorldWarpError, match="already"):
        move_student(*folders, tmp_path / "run")


def test_transformers_of_other_shapes_are_refused(folders, tmp_path):
    student, before, teacher = folders
    found = read_network(teacher, "transformer")
    name = next(iter(found.state))
    save_network(teacher, "transformer", found.state | {name: torch.zeros(3)}, found.config, found.progress)
    with pytest.raises(WorldWarpError, match="different shapes") as caught:
        move_student(student, before, teacher, tmp_path / "run")
    assert caught.value.code == "bad_weights"
    assert not (tmp_path / "run").exists()
