"""The learned loop, whole, with Wan's real classes in miniature."""

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import room
from tests.support.tiny_wan import TEXT_DIM, save_tiny_wan, tiny_transformer, tiny_vae
from worldwarp_core.api import load_engine
from worldwarp_core.checkpoint import Checkpoint
from worldwarp_core.engine import CPU, Engine
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.history import History
from worldwarp_core.loop.chunks import ChunkPlan, split_chunks
from worldwarp_core.loop.pipeline import Models
from worldwarp_core.loop.priors import Priors
from worldwarp_core.spec import Finished, Frame, GenerateSpec, Notice, PathDepth, Progress, PromptKey
from worldwarp_core.st_diff.denoise import SamplerSettings
from worldwarp_core.st_diff.fill import THE_METHOD, FixedModels, StDiffFill, StDiffModels
from worldwarp_core.st_diff.noise_map import PUBLIC_RULE, REFERENCE_SIGMAS, SMALL_PICTURES, NoiseSettings
from worldwarp_core.st_diff.presets import PRESETS, Preset, preset_notices
from worldwarp_core.transformer.prepare import prepare_transformer
from worldwarp_core.wan import source as wan
from worldwarp_core.wan.autoencoder import WanAutoencoder
from worldwarp_core.wan.budget import choose_plan
from worldwarp_core.wan.followers import LOST, Followers
from worldwarp_core.wan.source import WanOptions, WanSource

ROOT = Path(__file__).parents[3]
WIDTH, HEIGHT = 32, 16
QUICK = {
    "quick": Preset("quick", 2, SamplerSettings(guidance=2.0), experimental=False),
    "plain": Preset("plain", 3, SamplerSettings(guidance=1.0), changes="no guidance"),
}


class Words:
    """Embeds a prompt as noise of its own, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def embed(self, prompts):
        self.asked.append(list(prompts))
        rows = [torch.Generator().manual_seed(sum(p.encode()) + 1) for p in prompts]
        return torch.stack([torch.randn(8, TEXT_DIM, generator=g) for g in rows])


@dataclass
class Watched:
    """The models in miniature, what they are called with, and at which calls they run out of memory."""

    text: Words = field(default_factory=Words)
    full_at: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)
    room: int = 0

    captions = None
    distilled = False
    float8 = False
    slower = ""

    def __post_init__(self):
        self.transformer = prepare_transformer(tiny_transformer())
        self.autoencoder = WanAutoencoder(tiny_vae())

    def models(self, preset):
        return StDiffModels(self, self, self.text, torch.device("cpu"))

    def decoder(self):
        return self

    def shrink(self):
        if not self.room:
            return None
        self.room -= 1
        return Notice("out_of_memory", "Less from now on.")

    def describe(self):
        return {"models": "tiny"}

    def count(self, what, value):
        self.calls.append((what, value))
        number = sum(call[0] == what for call in self.calls)
        if number in self.full_at.get(what, ()):
            raise torch.OutOfMemoryError(f"CUDA out of memory at {what} {number}.")

    # What the loop asks of an autoencoder and a transformer.

    name = "tiny"
    channels = 16
    dtype = torch.float32

    def encode(self, frames):
        self.count("encode", frames)
        return self.autoencoder.encode(frames)

    def decode(self, latents, priors=None):
        for frame in self.autoencoder.decode(latents, priors):
            self.count("decode", priors)
            yield frame

    def __call__(self, hidden_states, levels, index, encoder_hidden_states):
        self.count("transformer", (hidden_states, levels, index))
        return self.transformer(hidden_states, levels, index, encoder_hidden_states)


pytestmark = pytest.mark.usefixtures("one_thread")


def make(frames, source=None, noise=THE_METHOD, **settings):
    """An engine over the miniature models, and a shot of `frames`."""
    fill = StDiffFill(source or Watched(), QUICK, "quick", noise)
    cameras = room.truck(frames, width=WIDTH, height=HEIGHT)
    rgb, depth = room.render(cameras)
    spec = GenerateSpec(cameras, rgb, depth, **{"chunk": 9, "overlap": 5, "cache_steps": 2, **settings})
    return Engine("tiny", Models(fill), CPU), spec


def run(frames, source=None, noise=THE_METHOD, **settings):
    engine, spec = make(frames, source, noise, **settings)
    return list(engine.generate(spec))


def of(kind, events):
    return [e for e in events if isinstance(e, kind)]


def pixels(events):
    return np.stack([f.rgb for f in of(Frame, events)])


# ---------------------------------------------------------------- the whole loop


@pytest.fixture(scope="module")
def thirteen():
    return run(13)


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_every_frame_arrives_once_in_order(frames):
    made = of(Frame, run(frames))
    assert [f.index for f in made] == list(range(frames))


def test_two_chunks_deliver_what_is_new_in_each(thirteen):
    made = of(Frame, thirteen)
    assert [(f.index, f.chunk) for f in made] == [(i, int(i >= 9)) for i in range(13)]
    assert all(f.rgb.shape == (HEIGHT, WIDTH, 3) for f in made)
    assert isinstance(thirteen[-1], Finished)


def test_a_chunk_goes_on_from_what_was_delivered_of_the_one_before():
    source = Watched()
    events = run(13, source)
    _, second = [value for what, value in source.calls if what == "encode"]
    delivered = torch.from_numpy(pixels(events)[4:9])
    assert torch.equal(second[:5], delivered.float() / 255)


def test_a_chunk_s_state_holds_its_pictures_in_bytes(thirteen):
    states = [event for event in thirteen if isinstance(event, Checkpoint) and event.stage == "made"]
    first = next(state for state in states if len(state.arrays["new.rgb"]) == 8)
    delivered = pixels(thirteen)[1:9]
    assert first.arrays["new.rgb"].dtype == first.arrays["new.trusted"].dtype == np.uint8
    assert np.array_equal(first.arrays["new.rgb"], delivered)


def test_the_start_frame_is_delivered_untouched(thirteen):
    assert (of(Frame, thirteen)[0].rgb == room.render(room.truck(13, width=WIDTH, height=HEIGHT))[0]).all()


def test_progress_tells_encoding_denoising_and_decoding_apart_and_ends_at_one(thirteen):
    steps = of(Progress, thirteen)
    fractions = [p.fraction for p in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    second = [(p.stage, p.step, p.steps) for p in steps if p.chunk == 1 and p.stage in ("encode", "denoise", "decode")]
    # Two steps, and the start of valid tokens as a node of its own.
    assert second == [
        ("encode", 1, 1),
        *[("denoise", i, 3) for i in (1, 2, 3)],
        *[("decode", i, 4) for i in (1, 2, 3, 4)],
    ]


def test_the_same_seed_gives_the_same_frames_and_another_gives_others(thirteen):
    again, other = pixels(run(13)), pixels(run(13, seed=1))
    assert (again == pixels(thirteen)).all()
    assert (other[1:] != again[1:]).mean() > 0.3


def test_the_summary_says_what_made_the_frames(thirteen):
    fill = thirteen[-1].summary["fill"]
    assert fill["name"] == "st-diff"
    assert fill["preset"]["name"] == "quick"
    assert fill["preset"]["steps"] == 2
    assert fill["models"] == "tiny"


def test_own_steps_and_guidance_go_over_the_preset(thirteen):
    events = run(2, steps=4, guidance=3.5, preset="plain")
    assert events[-1].summary["fill"]["preset"]["steps"] == 4
    assert events[-1].summary["fill"]["preset"]["sampler"]["guidance"] == 3.5


def test_cancelling_takes_effect_within_one_step():
    source = Watched()
    engine, spec = make(9, source)
    running = engine.generate(spec)
    for event in running:
        if isinstance(event, Progress) and event.stage == "denoise":
            break
    asked = [what for what, _ in source.calls].count("transformer")
    running.close()
    assert asked == 1
    assert [what for what, _ in source.calls].count("transformer") == 1


# ---------------------------------------------------------------- what the models are given


def chunk(new, context=5, hole=True, index=1, sure=1.0, noise=THE_METHOD, kind=StDiffFill, **settings):
    """One chunk filled on its own: its frames, what the models were called with, and the clip's colours."""
    source = Watched()
    cameras = room.truck(context + new, width=WIDTH, height=HEIGHT)
    shot = GenerateSpec(cameras, *room.render(cameras), **settings)
    generator = torch.Generator().manual_seed(3)
    rgb = torch.rand(context + new, HEIGHT, WIDTH, 3, generator=generator)
    ones = torch.ones(context + new, HEIGHT, WIDTH)
    validity = sure * ones
    if hole:
        validity[:, :, :16] = 0.0
    eye = torch.eye(4).expand(context, 4, 4)
    history = History(list(range(context)), rgb[:context], ones[:context], eye, eye[:, :3, :3])
    priors = Priors(rgb[context:], ones[context:], ones[context:], validity[context:])
    plan = ChunkPlan(index, range(context), range(context, context + new), -(-(context + new - 1) // 4) * 4 + 1)
    fill = kind(source, QUICK, "quick", noise)
    made = list(fill.fill(history, priors, plan, shot))
    return [m for m in made if isinstance(m, torch.Tensor)], source, rgb


def first_call(source):
    """Latents, and the timestep of every token as (T', H/16, W/16), of the first call of the transformer."""
    hidden, levels, index = next(value for what, value in source.calls if what == "transformer")
    return hidden[0], levels[index][0].view(-1, HEIGHT // 16, WIDTH // 16)


def test_the_clip_is_history_then_priors_then_the_last_prior_again():
    frames, source, rgb = chunk(new=2)
    (clip,) = [value for what, value in source.calls if what == "encode"]
    assert len(frames) == 2
    assert torch.equal(clip, torch.cat([rgb, rgb[-1:], rgb[-1:]]))


def test_holes_are_closed_for_the_encoder_alone_and_only_where_the_model_learned_it_so():
    _, source, rgb = chunk(new=8, noise=SMALL_PICTURES)
    (clip,) = [value for what, value in source.calls if what == "encode"]
    assert torch.equal(clip[:5], rgb[:5])
    assert torch.equal(clip[:, :, 16:], rgb[:, :, 16:])
    assert not torch.equal(clip[5:, :, :16], rgb[5:, :, :16])
    guide = next(value for what, value in source.calls if what == "decode")
    assert torch.equal(guide.rgb, rgb)


def test_history_is_clean_holes_are_noise_and_the_rest_lies_between():
    _, source, _ = chunk(new=8)
    _, timestep = first_call(source)
    assert (timestep[:2] == 0).all()
    assert (timestep[2:, :, 0] == 1000).all()
    assert timestep[2:, :, 1] == pytest.approx(1000 * REFERENCE_SIGMAS[9])


def test_latents_of_the_history_are_those_of_the_history_alone():
    _, source, rgb = chunk(new=8)
    latents, _ = first_call(source)
    alone = source.autoencoder.encode(rgb[:5])
    assert (latents[:, :2] - alone[0]).abs().max() < 1e-4


def test_history_goes_through_the_sampler_untouched_and_frames_are_those_after_it():
    frames, source, rgb = chunk(new=8)
    last = [value for what, value in source.calls if what == "transformer"][-1][0][0]
    assert (last[:, :2] - source.autoencoder.encode(rgb[:5])[0]).abs().max() < 1e-4
    assert len(frames) == 8
    assert all(f.shape == (HEIGHT, WIDTH, 3) and f.min() >= 0 and f.max() <= 1 for f in frames)


def test_what_the_paths_depth_hides_is_blank_to_the_model():
    slow = room.truck(9, travel=0.01, turn_rad=0.0, width=WIDTH, height=HEIGHT)
    wall = PathDepth.of(list(range(2, 10)), [np.full((8, 16), 0.5, np.float32)] * 8)
    levels = []
    for path_depth in (None, wall):
        source = Watched()
        engine, spec = make(9, source, cache_steps=20)
        list(engine.generate(replace(spec, cameras=slow, path_depth=path_depth)))
        levels.append(first_call(source)[1][1:])
    assert (levels[0] < 1000).all()
    assert (levels[1] == 1000).all()


def test_the_decoder_sees_the_priors_of_the_whole_clip():
    _, source, _ = chunk(new=2)
    guide = next(value for what, value in source.calls if what == "decode")
    assert len(guide.rgb) == 9
    assert (guide.validity[:5] == 1).all()
    assert (guide.validity[5:, :, :16] == 0).all()


def test_less_strength_starts_valid_places_with_less_noise():
    _, source, _ = chunk(new=4, strength=0.5)
    assert first_call(source)[1][2:, :, 1] == pytest.approx(1000 * REFERENCE_SIGMAS[25])


def test_a_shot_that_names_no_strength_gets_the_engine_s_own():
    class Careful(StDiffFill):
        strength = 0.2

    shot = make(2)[1]
    assert shot.strength is None
    assert StDiffFill(Watched(), QUICK, "quick").describe(shot)["strength"] == 0.8
    careful = Careful(Watched(), QUICK, "quick")
    assert (careful.describe()["strength"], careful.describe(shot)["strength"]) == (0.2, 0.2)
    assert careful.describe(replace(shot, strength=0.5))["strength"] == 0.5
    _, source, _ = chunk(new=4, kind=Careful)
    assert first_call(source)[1][2:, :, 1] == pytest.approx(1000 * REFERENCE_SIGMAS[40])


def test_a_strength_mask_changes_its_region_and_frames_alone():
    mask = np.zeros((9, 8, 16), np.float32)
    mask[5:, :, 8:] = 0.2  # the right half, in the new frames
    _, source, _ = chunk(new=4, hole=False, strength_mask=mask)
    timestep = first_call(source)[1]
    assert timestep[2, 0, 0] == pytest.approx(1000 * REFERENCE_SIGMAS[9])
    assert timestep[2, 0, 1] == 1000


def test_one_mask_holds_for_every_frame():
    _, source, _ = chunk(new=8, hole=False, strength_mask=np.full((1, 3, 3), -0.3, np.float32))
    assert first_call(source)[1][2:] == pytest.approx(1000 * REFERENCE_SIGMAS[25])


def test_graded_validity_gives_levels_between():
    _, source, _ = chunk(new=4, hole=False, sure=0.75, graded_validity=True)
    timestep = first_call(source)[1][2:]
    assert ((timestep > 1000 * REFERENCE_SIGMAS[9]) & (timestep < 1000)).all()


def test_noise_differs_from_chunk_to_chunk_but_not_with_what_was_made_before():
    first, second, again = (chunk(new=4, hole=False, index=i)[0] for i in (1, 2, 1))
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not torch.equal(torch.stack(first), torch.stack(second))


# ---------------------------------------------------------------- prompts


def test_each_chunk_is_made_with_the_prompt_that_holds_there():
    source = Watched()
    events = run(13, source, prompt="summer", negative_prompt="people", prompt_keys=(PromptKey(10, "winter"),))
    assert source.text.asked == [["summer", "people"], ["winter", "people"]]
    assert not [n for n in of(Notice, events) if n.code.startswith("prompt_key")]


def test_a_key_within_a_chunk_is_said_to_move():
    events = run(9, prompt_keys=(PromptKey(7, "winter"),))
    assert [n.code for n in of(Notice, events) if "prompt" in n.code] == ["prompt_key_unused"]


def test_without_guidance_nobody_reads_the_negative_prompt():
    source = Watched()
    events = run(2, source, preset="plain", negative_prompt="people")
    assert source.text.asked == [[""]]
    assert "negative prompt changes nothing" in " ".join(n.message for n in of(Notice, events))


class Seer:
    """A captioner that sees the same in every picture."""

    def __init__(self):
        self.asked = []

    def answer(self, picture, instruction, max_tokens):
        self.asked.append(picture.shape)
        return "Oil on canvas, warm." if "look" in instruction[:40] else "A hall of grey stone goes on to the left."


def test_captions_go_after_the_artists_words():
    source, seer = Watched(), Seer()
    source.captions = lambda: nullcontext(seer)
    style = np.zeros((20, 30, 3), np.uint8)
    events = run(13, source, prompt="a castle", auto_prompt=True, style_image=style)
    # Each chunk's first frame, and the style once.
    assert seer.asked == [(HEIGHT, WIDTH, 3), (20, 30, 3), (HEIGHT, WIDTH, 3)]
    written = "a castle. A hall of grey stone goes on to the left. Style: Oil on canvas, warm."
    assert [texts[0] for texts in source.text.asked] == [written] * 2
    told = [n.message for n in of(Notice, events) if n.code == "prompt_written"]
    assert told == [f"Frames from {first} on are made with: {written}" for first in (2, 10)]


def test_wishes_for_captions_without_a_captioner_are_answered():
    events = run(2, auto_prompt=True, style_image=np.zeros((20, 30, 3), np.uint8))
    (notice,) = [n for n in of(Notice, events) if n.code == "no_captioner"]
    assert "auto prompt, style image change nothing" in notice.message


# ---------------------------------------------------------------- the noise's rule


def test_an_engine_that_was_started_with_an_ablation_says_so():
    source = Watched()
    mask = np.zeros((1, 4, 4), np.float32)
    events = run(2, source, NoiseSettings(variant="full_noise"), strength_mask=mask)
    said = [n.message for n in of(Notice, events) if n.code in ("ablation", "no_effect")]
    assert len(said) == 2
    assert "full_noise: what is known of the frames to come is not used" in said[0]
    assert "strength mask changes nothing" in said[1]
    (_, levels, index), *_ = [value for what, value in source.calls if what == "transformer"]
    assert set(levels[index].unique().tolist()) == {0.0, 1000.0}
    assert events[-1].summary["fill"]["noise"]["variant"] == "full_noise"


def test_the_public_rule_needs_no_word_and_is_in_the_summary():
    events = run(2, noise=PUBLIC_RULE, graded_validity=True)
    assert "ablation" not in [n.code for n in of(Notice, events)]
    noise = events[-1].summary["fill"]["noise"]
    assert (noise["frames"], noise["erosion"], noise["graded"]) == ("last", "box", True)


# ---------------------------------------------------------------- presets


def test_an_approximation_is_named_with_what_it_changes():
    notices = of(Notice, run(2, preset="plain"))
    (said,) = [n.message for n in notices if n.code == "preset"]
    assert "plain: no guidance" in said
    assert "Experimental" in said
    assert "few_steps" in [n.code for n in notices]


def test_an_unknown_preset_is_refused_before_anything_runs():
    source = Watched()
    with pytest.raises(WorldWarpError, match=r"no preset called 'turbo'\. Choose: quick, plain") as caught:
        run(2, source, preset="turbo")
    assert caught.value.code == "bad_settings"
    assert source.calls == []


def test_the_reference_is_the_method_as_published():
    preset = PRESETS["reference"]
    assert (preset.steps, preset.sampler, preset.fp8, preset.changes) == (50, SamplerSettings(guidance=5.0), False, "")


def test_every_other_preset_says_what_it_changes_and_is_experimental():
    others = [p for p in PRESETS.values() if p.name != "reference"]
    assert [p.name for p in others] == ["balanced", "fast"]
    assert all(p.changes and p.steps < 50 for p in others)
    for preset in others:
        (said,) = [notice.message for notice in preset_notices(preset, distilled=True)]
        assert said == f"Preset {preset.name}: {preset.changes}. Experimental: {preset.measured}."
        assert preset.measured


# ---------------------------------------------------------------- out of memory


def test_what_little_memory_costs_is_said_once():
    source = Watched()
    source.slower = "the text encoder on the CPU"
    said = [n.message for n in of(Notice, run(13, source)) if n.code == "little_memory"]
    assert said == ["To keep within the GPU's memory, slower: the text encoder on the CPU."]


@pytest.mark.parametrize("full_at", [{"encode": [2]}, {"transformer": [5]}, {"decode": [11]}])
def test_a_full_device_falls_back_says_so_and_the_frames_are_the_same(thirteen, full_at):
    source = Watched(full_at=full_at, room=1)
    events = run(13, source)
    assert [n.message for n in of(Notice, events) if n.code == "out_of_memory"] == ["Less from now on."]
    assert [f.index for f in of(Frame, events)] == list(range(13))
    assert (pixels(events) == pixels(thirteen)).all()


def test_frames_that_were_delivered_are_not_decoded_differently_and_delivered_again():
    source = Watched(full_at={"decode": [5]}, room=1)  # the fifth frame of the first chunk
    events = run(9, source)
    made = of(Frame, events)
    assert [f.index for f in made] == list(range(9))
    told = next(i for i, e in enumerate(events) if isinstance(e, Notice) and e.code == "out_of_memory")
    assert sum(isinstance(e, Frame) for e in events[:told]) == 4
    assert sum(what == "encode" for what, _ in source.calls) == 1  # the rest is decoded anew, nothing else


def test_memory_may_run_out_more_than_once():
    source = Watched(full_at={"transformer": [2, 4], "decode": [3]}, room=3)
    assert len(of(Frame, run(9, source))) == 9
    assert source.room == 0


def test_with_nothing_left_to_give_up_the_job_ends_with_what_to_do():
    with pytest.raises(WorldWarpError, match="make the frames smaller") as caught:
        run(9, Watched(full_at={"transformer": [1]}))
    assert caught.value.code == "out_of_memory"


def test_a_full_device_during_the_fit_makes_room_too(monkeypatch, thirteen):
    from worldwarp_core.loop import pipeline

    fits, real = [], pipeline.update_cache

    def update_cache(*arguments):
        fits.append(1)
        fitting = real(*arguments)
        yield next(fitting)
        if len(fits) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return (yield from fitting)

    monkeypatch.setattr(pipeline, "update_cache", update_cache)
    source = Watched(room=1)
    events = run(13, source)
    assert source.room == 0
    assert (pixels(events) == pixels(thirteen)).all()


# ---------------------------------------------------------------- the engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_wan(tmp_path_factory.mktemp("models") / "wan")


@pytest.fixture
def assets(monkeypatch, tmp_path):
    monkeypatch.setattr("worldwarp_core.wan.source.cached_assets_path", lambda *_: tmp_path / "embeddings")
    return tmp_path / "embeddings"


def test_the_engine_makes_a_shot_from_a_folder_of_models(folder, assets):
    engine = load_engine(
        "wan", device="cpu", weights=str(folder), transformer="base", compile=False, mask_rule="public", noise="spatial"
    )
    cameras = room.truck(2, width=WIDTH, height=HEIGHT)
    spec = GenerateSpec(cameras, *room.render(cameras), cache_steps=2, steps=1, prompt="a courtyard")
    events = list(engine.generate(spec))
    assert len(of(Frame, events)) == 2
    assert events[-1].summary["engine"]["fill"]["models"]["weights"] == str(folder)
    assert len(list(assets.glob("*.safetensors"))) == 2  # the prompt and the negative one
    assert engine.describe()["fill"]["preset"]["name"] == "reference"
    assert engine.describe()["fill"]["noise"] == asdict(replace(PUBLIC_RULE, variant="spatial"))


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ({"preset": "turbo"}, "bad_settings", "no preset called 'turbo'. Choose: reference, balanced, fast"),
        ({"vram": "10"}, "bad_settings", "auto, 6, 8, 12, 16, 24, 40, 80"),
        ({"loras": ["look.safetensors=strong"]}, "bad_settings", "file=scale"),
        ({"loras": ["nowhere.safetensors"]}, None, "nowhere.safetensors"),
        ({"weights": "/nowhere/at/all"}, "no_weights", "/nowhere/at/all"),
        ({"captioner": "qwen2.5-vl-7b"}, "no_weights", "worldwarp models download qwen2.5-vl-7b"),
        ({"warp": 9}, "bad_settings", "no option 'warp'"),
        ({"vram": "8", "gpus": 2}, "bad_settings", "give vram 12 or more, or one GPU; got 8 for 2 GPUs"),
        ({"mask_rule": "theirs"}, "bad_settings", "ours, public; got 'theirs'"),
        ({"noise": "none"}, "bad_settings", "both, spatial, temporal, uniform, full_noise; got 'none'"),
    ],
)
def test_options_that_cannot_be_are_refused_with_a_sentence(folder, assets, options, code, sentence):
    with pytest.raises(WorldWarpError, match=sentence) as caught:
        load_engine(
            "wan", device="cpu", **({"weights": str(folder), "transformer": "base", "compile": False} | options)
        )
    assert code is None or caught.value.code == code


def test_the_cache_engine_takes_no_models():
    with pytest.raises(WorldWarpError, match="weights cannot be used with it"):
        load_engine("cache", device="cpu", weights="wan-1.3b")


def test_fixed_models_are_a_source():
    watched = Watched()
    source = FixedModels("preview", watched.models(QUICK["quick"]))
    assert source.shrink() is None
    assert source.models(QUICK["quick"]) is source.loaded
    assert len(of(Frame, run(2, source))) == 2


def test_a_plan_of_any_length_is_counted_whole():
    fill = StDiffFill(Watched(), QUICK, "quick")
    cameras = room.truck(13, width=WIDTH, height=HEIGHT)
    spec = GenerateSpec(cameras, *room.render(cameras), chunk=9, overlap=5)
    assert [fill.count_steps(spec, plan) for plan in split_chunks(13, 9, 5)] == [{"encode": 1, "denoise": 3}] * 2
    assert fill.count_steps(replace(spec, steps=50), split_chunks(13, 9, 5)[0]) == {"encode": 1, "denoise": 50}


@pytest.mark.parametrize(("gib", "tolerance"), [(8, 1e-5), (6, 0.1)])
def test_small_plans_give_what_the_resident_models_give(folder, assets, gib, tolerance):
    """In 6 GB the transformer waits in float8, which rounds it."""
    options = WanOptions(weights=str(folder), transformer="base", compile=False)
    latents = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    answers = []
    for plan in (None, gib):
        source = WanSource(options, "cpu")
        source.plan = replace(choose_plan(str(plan), 0), tile=None) if plan else source.plan
        models = source.models(PRESETS["reference"])
        models.autoencoder.encode(torch.rand(5, 32, 48, 3))  # has a parked transformer leave
        index = torch.zeros(1, 12, dtype=torch.int64)
        with torch.no_grad():
            answers.append(models.transformer(latents, torch.tensor([500.0]), index, torch.zeros(1, 8, TEXT_DIM)))
    assert (answers[0] - answers[1]).norm() < tolerance * answers[0].norm()


def test_a_gpu_without_triton_compiles_nothing_instead_of_failing_at_the_first_chunk(folder, monkeypatch):
    source = WanSource(WanOptions(weights=str(folder), transformer="base"), "cpu")
    source.device, source.plan = torch.device("cuda"), choose_plan("24", 0)
    for missing in (None, "Triton is not installed"):
        monkeypatch.setattr(wan, "why_no_triton", lambda missing=missing: missing)
        assert source.describe()["compiled"] is (missing is None)


def test_a_preset_in_float8_gets_it_where_the_gpu_has_it_and_the_transformer_is_not_streamed(folder, monkeypatch):
    source = WanSource(WanOptions(weights=str(folder), transformer="base"), "cpu")
    assert not source.float8
    source.device = torch.device("cuda")
    for gib, has, gets in (("24", True, True), ("24", False, False), ("6", True, False)):
        source.plan = choose_plan(gib, 0)
        monkeypatch.setattr(wan, "multiplies_float8", lambda device, has=has: has)
        assert source.float8 is gets


SHARED = """
import sys
import numpy as np
import torch
from tests.support import room
from worldwarp_core.api import load_engine
from worldwarp_core.spec import Frame, GenerateSpec

torch.set_num_threads(1)
folder, prompts, out = sys.argv[1:]
engine = load_engine(
    "wan", device="cpu", weights=folder, transformer="base", compile=False, gpus=2, prompt_cache=prompts
)
cameras = room.truck(2, width=32, height=16)
spec = GenerateSpec(cameras, *room.render(cameras), chunk=9, overlap=5, cache_steps=2, steps=1)
(follower,) = engine.models.fill._source._followers._processes
follower.terminate()  # as a service that stops says to all of its processes
np.save(out, np.stack([event.rgb for event in engine.generate(spec) if isinstance(event, Frame)]))
follower.kill()
list(engine.generate(spec))
print("went on without its follower")
"""


def test_two_processes_share_the_transformer_and_make_the_same_frames(folder, assets, tmp_path):
    out = tmp_path / "frames.npy"
    command = [sys.executable, "-c", SHARED, str(folder), str(tmp_path / "prompts"), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    # With its follower gone it waits for no answer, but ends and says why.
    assert done.returncode == LOST, done.stderr[-2000:]
    assert "The process of GPU 1 is gone (exit code -9)" in done.stderr
    alone = load_engine("wan", device="cpu", weights=str(folder), transformer="base", compile=False)
    here = pixels(list(alone.generate(make(2, steps=1)[1])))
    assert np.abs(here.astype(int) - np.load(out)).max() <= 1


def test_a_size_of_gpu_memory_without_a_gpu_is_said_to_change_nothing(folder, assets):
    engine = load_engine("wan", device="cpu", weights=str(folder), transformer="base", compile=False, vram="12")
    assert [notice.code for notice in engine.notices] == ["no_effect"]


def test_models_that_do_not_fit_are_loaded_in_a_smaller_plan_and_every_job_says_so(folder, assets, monkeypatch):
    full = [True, True]

    def load_transformer(*arguments):
        if full and full.pop():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*arguments)

    real = wan.load_transformer
    monkeypatch.setattr(wan, "load_transformer", load_transformer)
    monkeypatch.setattr(WanSource, "shrink", lambda source: Notice("out_of_memory", "Less."))
    engine = load_engine("wan", device="cpu", weights=str(folder), transformer="base", compile=False)
    assert [notice.message for notice in engine.notices] == ["Less.", "Less."]

    full.extend([True])
    monkeypatch.setattr(WanSource, "shrink", lambda source: None)
    with pytest.raises(WorldWarpError, match="does not hold the models: CUDA out of memory") as caught:
        load_engine("wan", device="cpu", weights=str(folder), transformer="base", compile=False)
    assert caught.value.code == "out_of_memory"


def test_gpus_that_have_nothing_to_talk_through_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(WorldWarpError, match="use one GPU"):
        Followers(2, "cuda", WanOptions())


def test_more_gpus_than_there_are_is_refused(folder):
    with pytest.raises(WorldWarpError, match="1, 2 or 4 GPUs"):
        load_engine("wan", device="cpu", weights=str(folder), transformer="base", gpus=3)
