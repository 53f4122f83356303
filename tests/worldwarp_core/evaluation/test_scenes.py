"""Scenes: even over the strata, and a truth that is worked out once."""

from collections import Counter
from dataclasses import replace

import numpy as np

from tests.support.toy_scenes import ToyScenes
from worldwarp_core.evaluation.held_out import REVISITS
from worldwarp_core.evaluation.scenes import choose_held_out


def test_few_paths_are_even_over_strata_and_kinds_and_more_go_on_from_them():
    assert Counter(path.stratum for path in choose_held_out(8)) == dict.fromkeys(("lost", "little", "half", "most"), 2)
    assert max(Counter(path.kind for path in choose_held_out(8)).values()) == 2
    assert choose_held_out(8)[:4] == choose_held_out(4)
    assert len(choose_held_out(None)) == len(set(choose_held_out(40))) == 36
    assert [path.kind for path in choose_held_out(2, REVISITS)] == ["rooms", "street"]


def test_a_truth_is_worked_out_once_and_then_read(tmp_path):
    scene = ToyScenes().scene(0)
    asked = []

    def counted(frames):
        asked.extend(frames)
        return scene.truth(frames)

    kept = replace(scene, truth=counted).remembered(tmp_path)
    first = kept.truth([0, 5])
    again = replace(scene, truth=counted).remembered(tmp_path).truth([5, 7, 0])
    assert asked == [0, 5, 7]
    np.testing.assert_array_equal(again[0][0], first[0][1])
    np.testing.assert_array_equal(again[1][2], first[1][0])


def test_footage_is_remembered_without_depth(tmp_path):
    kept = ToyScenes(with_depth=False).scene(0).remembered(tmp_path)
    kept.truth([0])
    assert kept.truth([0, 1])[1] is None
