"""Captions: how the real class is loaded, asked and freed; what of an answer is kept; what goes into a prompt."""

import gc
import json
import weakref

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.support.tiny_qwen import save_tiny_qwen
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.st_diff import captions
from worldwarp_core.st_diff.captions import (
    LOOK,
    SCENE,
    clean_caption,
    compose_prompt,
    describe_look,
    describe_scene,
    open_captioner,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def captioner(folder):
    with open_captioner(folder, dtype=torch.float32) as captioner:
        yield captioner


def picture(height=64, width=96, seed=0):
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


class Says:
    """Answers with a given text and remembers how it was asked."""

    def __init__(self, text):
        self.text, self.asked = text, []

    def answer(self, picture, instruction, max_tokens):
        self.asked.append((tuple(picture.shape), instruction, max_tokens))
        return self.text


def test_the_real_class_answers_within_its_bounds(captioner, monkeypatch):
    lengths = []
    generate = Qwen2_5_VLForConditionalGeneration.generate

    def counted(self, **inputs):
        out = generate(self, **inputs)
        lengths.append((out.shape[1] - inputs["input_ids"].shape[1], inputs["max_new_tokens"]))
        return out

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "generate", counted)
    assert len(describe_look(captioner, picture()).split()) <= captions.LOOK_WORDS
    [(length, limit)] = lengths
    assert 0 < length <= limit == 2 * captions.LOOK_WORDS


def test_the_same_question_gets_the_same_answer_and_another_picture_another(captioner):
    answer = captioner.answer(picture(), "What is this?", 24)
    assert answer
    assert captioner.answer(picture(), "What is this?", 24) == answer
    assert captioner.answer(picture(seed=1), "What is this?", 24) != answer, "the picture must reach the model"


def test_a_large_picture_is_looked_at_within_the_pixel_limit(captioner, monkeypatch):
    counts = []

    def counted(self, **inputs):
        counts.append(int((inputs["input_ids"] == self.config.image_token_id).sum()))
        assert inputs["mm_token_type_ids"].sum() == counts[-1]
        return inputs["input_ids"]

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "generate", counted)
    captioner.answer(picture(480, 720), "?", 1)
    captioner.answer(picture(1600, 2400), "?", 1)
    assert 400 < counts[0] <= 512
    assert 400 < counts[1] <= 512


def test_the_model_is_freed_after_the_block(folder):
    with open_captioner(folder, dtype=torch.float32) as captioner:
        model = weakref.ref(captioner._model)
    gc.collect()
    assert model() is None


def test_the_model_is_freed_after_a_failure_too(folder):
    with pytest.raises(WorldWarpError), open_captioner(folder, dtype=torch.float32) as captioner:
        describe_look(captioner, picture(16, 600))
    assert not hasattr(captioner, "_model")


@pytest.mark.parametrize(
    ("name", "command"),
    [("qwen2.5-vl-7b", "qwen2.5-vl-7b"), ("nobody/no-such-captioner", "nobody/no-such-captioner")],
)
def test_a_missing_captioner_says_which_command_fetches_it(name, command, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WorldWarpError, match=f"worldwarp models download {command}$") as caught, open_captioner(name):
        pass
    assert caught.value.code == "no_weights"


def test_an_incomplete_folder_is_said_to_be_one(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(WorldWarpError, match="holds no complete") as caught, open_captioner(tmp_path):
        pass
    assert caught.value.code == "no_weights"


def test_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WorldWarpError, match="'bert'") as caught, open_captioner(tmp_path):
        pass
    assert caught.value.code == "bad_weights"


def test_the_artists_words_are_part_of_the_question():
    captioner = Says("A calm hall of grey stone.")
    assert describe_scene(captioner, picture(), "a ruined\n  abbey") == "A calm hall of grey stone."
    assert describe_scene(captioner, picture()) == "A calm hall of grey stone."
    with_words, without = (instruction for _, instruction, _ in captioner.asked)
    assert '"a ruined abbey"' in with_words
    assert without == SCENE
    assert "80 to 120 words" in SCENE


def test_a_look_is_asked_for_without_what_the_picture_shows():
    captioner = Says("Soft watercolour with bleeding edges")
    assert describe_look(captioner, picture()) == "Soft watercolour with bleeding edges"
    assert captioner.asked[0][1] == LOOK


def test_a_strip_of_a_style_image_is_refused():
    with pytest.raises(WorldWarpError, match="600x16") as caught:
        describe_look(Says(""), picture(16, 600))
    assert caught.value.code == "bad_settings"


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("A stone hall. The camera pans left. Ivy hangs low.", "A stone hall. Ivy hangs low."),
        ("Sure! Here is the description: A stone hall.", "A stone hall."),
        ("Here's a description:\n\nA stone hall.\n", "A stone hall."),
        ('"A stone hall with pillars."', "A stone hall with pillars."),
        ("**A stone hall**\n- with pillars", "A stone hall with pillars"),
        ("A hall\x00\x1b[31m of stone.\u202e", "A hall [31m of stone."),
        ("People are walking by. A quiet hall.", "A quiet hall."),
        ("The camera zooms in.", ""),
        ("", ""),
        ("A panelled room with moving-day boxes left out.", ""),
        ("A panelled room.", "A panelled room."),
    ],
)
def test_what_is_kept_of_an_answer(answer, kept):
    assert clean_caption(answer, 120) == kept


def test_captions_end_with_a_whole_sentence_within_the_limit():
    sentence = "One two three four five six seven eight nine ten."
    assert clean_caption(" ".join([sentence] * 9), 45) == " ".join([sentence] * 4)
    assert clean_caption("word " * 500, 40) == " ".join(["word"] * 40), "a sentence without an end is cut"


@pytest.mark.parametrize(
    ("parts", "prompt"),
    [
        (("a ruined abbey", "Moss covers the walls.", "oil on canvas"),
         "a ruined abbey. Moss covers the walls. Style: oil on canvas"),
        (("a ruined abbey!", "", ""), "a ruined abbey!"),
        (("a ruined abbey", "", ""), "a ruined abbey"),
        (("", "Moss covers the walls.", ""), "Moss covers the walls."),
        (("", "", "oil on canvas"), "Style: oil on canvas"),
        (("", "", ""), ""),
    ],
)  # fmt: skip
def test_the_artists_words_come_first(parts, prompt):
    assert compose_prompt(*parts) == prompt
