"""Which prompt a chunk is made with, where a shot's prompt changes along the path."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldwarp_core.loop.chunks import split_chunks
from worldwarp_core.spec import PromptKey
from worldwarp_core.st_diff.prompts import prompt_for, prompt_notices


def shot(*keys, prompt="base"):
    return SimpleNamespace(prompt=prompt, prompt_keys=tuple(PromptKey(*key) for key in keys))


NUMBERS = np.arange(1, 138)  # chunks of new frames 2-49, 50-93, 94-137


def prompts(spec, numbers=NUMBERS):
    return [prompt_for(spec, plan, numbers) for plan in split_chunks(len(numbers))]


def notices(spec, numbers=NUMBERS):
    return [(n.code, n.message) for n in prompt_notices(spec, split_chunks(len(numbers)), numbers)]


def test_without_keys_every_chunk_has_the_shots_prompt():
    assert prompts(shot()) == ["base"] * 3
    assert notices(shot()) == []


def test_a_key_where_a_chunk_begins_takes_effect_there_and_needs_no_word():
    spec = shot((50, "snow"), (94, "sand"))
    assert prompts(spec) == ["base", "snow", "sand"]
    assert notices(spec) == []


@pytest.mark.parametrize("frame", [-10, 1, 2])
def test_a_key_before_the_first_new_frame_holds_from_the_start(frame):
    assert prompts(shot((frame, "snow"))) == ["snow"] * 3
    assert notices(shot((frame, "snow"))) == []


def test_the_prompt_of_most_of_a_chunk_is_the_chunks():
    assert prompts(shot((60, "snow"))) == ["base", "snow", "snow"]
    assert prompts(shot((80, "snow"))) == ["base", "base", "snow"]
    assert prompts(shot((72, "snow"))) == ["base", "snow", "snow"], "22 frames each: the later one"


def test_a_key_inside_a_chunk_is_said_with_the_frame_from_which_it_shows():
    [(code, message)] = notices(shot((60, "snow")))
    assert code == "prompt_key_moved"
    assert "at frame 60 shows from frame 50 on" in message
    [(code, message)] = notices(shot((80, "snow")))
    assert "at frame 80 shows from frame 94 on" in message


def test_a_key_that_never_shows_is_said():
    spec = shot((60, "snow"), (66, "sand"))
    assert prompts(spec) == ["base", "sand", "sand"]
    [(code, message), (moved, _)] = notices(spec)
    assert code == "prompt_key_unused"
    assert "at frame 60 is not shown" in message
    assert moved == "prompt_key_moved"


def test_a_key_after_the_end_is_said():
    [(code, message)] = notices(shot((138, "snow")))
    assert code == "prompt_key_unused"
    assert "after the path's end, 137" in message


def test_a_key_replaced_before_the_path_begins_needs_no_word():
    assert notices(shot((-5, "snow"), (1, "sand"))) == []


def test_frame_numbers_may_have_gaps():
    numbers = np.arange(100, 100 + 2 * 93, 2)  # new frames 102-196 and 198-284
    assert prompts(shot((198, "snow")), numbers) == ["base", "snow"]
    assert prompts(shot((197, "snow")), numbers) == ["base", "snow"]
    assert notices(shot((197, "snow")), numbers) == []


def test_a_path_of_the_start_frame_alone_has_the_shots_prompt():
    assert prompts(shot((5, "snow")), np.array([1])) == ["base"]


@given(st.sets(st.integers(-20, 220), max_size=6), st.integers(2, 200))
def test_no_more_frames_have_a_wrong_prompt_than_under_any_other_rule(frames, length):
    """Frame by frame: the chosen prompt holds for at least as many of a chunk's frames as any other does."""
    numbers = np.arange(1, length + 1)
    spec = shot(*((frame, str(frame)) for frame in sorted(frames)))
    for plan in split_chunks(length):
        chosen = prompt_for(spec, plan, numbers)
        wanted = []
        for number in numbers[plan.new.start : plan.new.stop]:
            before = [key for key in spec.prompt_keys if key.frame <= number]
            wanted.append(before[-1].prompt if before else spec.prompt)
        assert wanted.count(chosen) == max(wanted.count(prompt) for prompt in wanted)
