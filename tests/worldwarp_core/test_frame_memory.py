import threading

import numpy as np

from worldwarp_core.frame_memory import frame_arrays, lending


def kinds(arrays):
    return [(array.shape, array.dtype) for array in arrays]


def test_arrays_are_as_a_frame_has_them_whoever_they_are_from():
    assert kinds(frame_arrays(3, 5)) == [((3, 5, 3), np.uint8), ((3, 5), np.float32), ((3, 5), np.uint8)]
    with lending(lambda height, width: None):
        assert kinds(frame_arrays(3, 5)) == [((3, 5, 3), np.uint8), ((3, 5), np.float32), ((3, 5), np.uint8)]


def test_arrays_are_lent_to_who_asks_in_the_same_thread_meanwhile():
    ours = frame_arrays(2, 4)
    asked = []

    def lend(height, width):
        asked.append((height, width))
        return ours

    with lending(lend):
        assert frame_arrays(2, 4)[0] is ours[0]
        other = threading.Thread(target=frame_arrays, args=(6, 6))
        other.start()
        other.join()
    assert frame_arrays(2, 4)[0] is not ours[0]
    assert asked == [(2, 4)]
