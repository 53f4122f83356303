from worldwarp_core.loop.timeline import Timeline


def test_the_fraction_never_falls_and_ends_at_one():
    timeline = Timeline({"cache": 10, "fill": 5}, {"cache": 0.1, "fill": 5.0}, chunks=1)
    fractions = [timeline.tick("cache", 0, i, 10).fraction for i in range(10)]
    fractions += [timeline.tick("fill", 0, i, 5).fraction for i in range(5)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_the_time_left_follows_what_was_measured(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("worldwarp_core.loop.timeline.time.perf_counter", lambda: now[0])
    timeline = Timeline({"cache": 10}, {"cache": 100.0}, chunks=1)
    now[0] = 2.0
    progress = timeline.tick("cache", 0, 1, 10)
    assert progress.eta_s == 18.0
    assert progress.fraction == 0.1
    assert timeline.seconds["cache"] == 2.0


def test_several_steps_can_be_booked_at_once():
    timeline = Timeline({"priors": 8}, {"priors": 1.0}, chunks=1)
    assert timeline.tick("priors", 0, 8, 8, count=8).fraction == 1.0
