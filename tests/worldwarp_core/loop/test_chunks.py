import pytest

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.loop.chunks import MIN_NEW_FRAMES, split_chunks

LENGTHS = (1, 2, 48, 49, 50, 93, 94, 200)


@pytest.mark.parametrize("total", LENGTHS)
def test_every_frame_is_made_once_and_in_order(total):
    plans = split_chunks(total)
    assert [0, *(i for p in plans for i in p.new)] == list(range(total))


@pytest.mark.parametrize("total", [*LENGTHS, *range(3, 150)])
def test_clips_are_4k_plus_1_and_padded_by_less_than_a_latent(total):
    for plan in split_chunks(total):
        assert plan.length % 4 == 1
        assert len(plan.context) % 4 == 1
        assert 0 <= plan.padding < 4
        assert plan.length <= 49
        assert plan.context.stop == plan.new.start


def test_the_paper_s_lengths():
    first, second = split_chunks(93)
    assert (first.context, first.new, first.length) == (range(1), range(1, 49), 49)
    assert (second.context, second.new, second.length) == (range(44, 49), range(49, 93), 49)


def test_one_frame_is_one_chunk_with_nothing_to_make():
    (plan,) = split_chunks(1)
    assert (plan.context, len(plan.new), plan.length) == (range(1), 0, 1)


def test_a_short_last_chunk_starts_earlier_with_more_context():
    last = split_chunks(94)[-1]
    assert last.new == range(93, 94)
    assert len(last.context) + len(last.new) >= 5 + MIN_NEW_FRAMES
    assert len(last.context) > 5


def test_small_chunks_never_exceed_their_own_length():
    for plan in split_chunks(40, chunk=9, overlap=5):
        assert plan.length <= 9


@pytest.mark.parametrize(("chunk", "overlap"), [(48, 5), (49, 4), (49, 49), (5, 9), (0, 1)])
def test_impossible_lengths_are_refused(chunk, overlap):
    with pytest.raises(WorldWarpError) as caught:
        split_chunks(93, chunk, overlap)
    assert caught.value.code == "bad_settings"
