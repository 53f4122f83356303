"""Stages as people read them."""

from __future__ import annotations

import typing

from engine_bridge.stages import PICTURE, SHOT, stage_in_words
from engine_bridge.worker import DRAW_STAGES
from worldwarp_core.spec import Stage


def test_every_stage_has_words() -> None:
    assert set(typing.get_args(Stage)) | {"gpu"} == set(SHOT)
    assert set(DRAW_STAGES.values()) <= set(PICTURE)


def test_a_stage_of_a_newer_server_is_told_by_its_name() -> None:
    assert stage_in_words("denoise") == "filling in"
    assert stage_in_words("denoise", of_picture=True) == "drawing"
    assert stage_in_words("upscale") == "upscale"
