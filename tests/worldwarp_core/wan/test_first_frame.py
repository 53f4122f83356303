"""A start frame from words: what diffusers' own pipeline draws with the same weights, from a tiny real model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from tests.support.tiny_wan import save_tiny_wan, tiny_transformer
from worldwarp_core.api import load_engine
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import FirstFrameSettings
from worldwarp_core.wan.first_frame import make_first_frame
from worldwarp_core.wan.weights import resolve_models

SETTINGS = FirstFrameSettings("A quiet courtyard", "blurry", width=64, height=48, seed=3, steps=3)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return resolve_models(str(save_tiny_wan(tmp_path_factory.mktemp("wan"))))


def test_it_is_what_wans_own_pipeline_draws(files, tmp_path):
    frame = make_first_frame(files, SETTINGS, tmp_path)
    assert frame.shape == (48, 64, 3)
    assert frame.dtype == np.uint8
    pipeline = WanPipeline.from_pretrained(files.base, dtype=torch.float32)
    theirs = pipeline(
        prompt=SETTINGS.prompt,
        negative_prompt=SETTINGS.negative_prompt,
        width=64,
        height=48,
        num_frames=1,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
        max_sequence_length=512,
    ).frames[0, 0]
    theirs = (theirs.movedim(0, -1) * 255).round().numpy()
    assert np.abs(frame.astype(float) - theirs).max() <= 1
    assert theirs.std() > 1, "a picture without content would agree with anything"


def test_the_seed_decides_the_picture(files, tmp_path):
    once, again = (make_first_frame(files, SETTINGS, tmp_path) for _ in range(2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, make_first_frame(files, replace(SETTINGS, seed=4), tmp_path))


def test_guidance_of_one_asks_without_the_negative_prompt(files, tmp_path):
    alone = replace(SETTINGS, guidance=1.0)
    other = replace(alone, negative_prompt="snowy forest")
    assert np.array_equal(make_first_frame(files, alone, tmp_path), make_first_frame(files, other, tmp_path))


def test_progress_counts_every_step_and_raising_stops_there(files, tmp_path):
    told = []
    make_first_frame(files, SETTINGS, tmp_path, on_step=lambda *step: told.append(step))
    assert told == [
        *(("text", 0, 1), ("load", 0, 1)),
        *(("steps", 0, 3), ("steps", 1, 3), ("steps", 2, 3), ("steps", 3, 3)),
        ("decode", 0, 1),
    ]
    told.clear()

    def stop_after_one(part, step, steps):
        told.append((part, step))
        if (part, step) == ("steps", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_first_frame(files, SETTINGS, tmp_path, on_step=stop_after_one)
    assert told[-1] == ("steps", 1)


def test_a_device_that_is_not_there_is_said(files, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(WorldWarpError, match="--device cpu") as caught:
        make_first_frame(files, SETTINGS, tmp_path, "cuda")
    assert caught.value.code == "no_cuda"
    with pytest.raises(WorldWarpError, match="got 'tpu'"):
        make_first_frame(files, SETTINGS, tmp_path, "tpu")


def test_too_little_memory_says_what_to_do(files, tmp_path):
    def full(part, step, steps):
        raise torch.OutOfMemoryError

    with pytest.raises(WorldWarpError, match="64x48") as caught:
        make_first_frame(files, SETTINGS, tmp_path, "cpu", full)
    assert caught.value.code == "out_of_memory"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": "  "}, "needs a prompt"),
        ({"width": 500}, "got 500x480, 496x480 would do"),
        ({"height": 8}, "got 832x8, 832x16 would do"),
        ({"width": 0}, "multiples of 16"),
        ({"width": 1920, "height": 1088}, "at most 921600 pixels"),
        ({"width": 4096, "height": 16}, "2048 a side"),
        ({"steps": 0}, "between 1 and 1000"),
        ({"guidance": 0.5}, "between 1 and 100"),
        ({"guidance": float("nan")}, "between 1 and 100"),
    ],
)
def test_impossible_settings_are_refused_with_a_way_out(changes, says):
    with pytest.raises(WorldWarpError, match=says) as caught:
        FirstFrameSettings(**({"prompt": "stone"} | changes))
    assert caught.value.code == "bad_settings"


def test_the_engine_draws_with_the_base_transformer_whatever_it_makes_shots_with(files, tmp_path):
    tuned = save_tiny_wan(tmp_path / "tuned", transformer=tiny_transformer(seed=9)) / "transformer"
    engine = load_engine(
        "wan",
        device="cpu",
        weights=str(files.base),
        transformer=str(tuned),
        compile=False,
        prompt_cache=str(tmp_path / "prompts"),
    )
    told = []
    drawn = engine.draw(SETTINGS, lambda part, step, steps: told.append(part))
    assert engine.describe()["draws"]
    assert told[0] == "text"
    assert told[-1] == "decode"
    assert np.array_equal(drawn, make_first_frame(files, SETTINGS, tmp_path / "prompts"))


def test_engines_without_such_a_model_say_which_one_draws():
    engine = load_engine("cache", device="cpu")
    assert not engine.describe()["draws"]
    with pytest.raises(WorldWarpError, match="--engine wan") as caught:
        engine.draw(SETTINGS, lambda part, step, steps: None)
    assert caught.value.code == "cannot_draw"
