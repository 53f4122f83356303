from dataclasses import fields

import pytest
from typer.testing import CliRunner

from engine_bridge.cli import app
from engine_bridge.cli_engine import EngineArguments, share_gpus
from engine_bridge.errors import BridgeError
from worldwarp_core.wan.source import WanOptions, read_options

ALL = EngineArguments(
    weights="/models/wan",
    transformer="base",
    loras=("look.safetensors=0.8", "other.safetensors"),
    distilled=True,
    vram="12",
    captioner="/models/qwen",
    no_compile=True,
    gpus=2,
    preset="fast",
    mask_rule="public",
    noise="spatial",
)


def test_what_was_not_given_is_left_to_the_engine():
    assert EngineArguments().options() == {}
    assert EngineArguments().arguments() == []


def test_every_option_reaches_the_engine():
    options = read_options(ALL.options())
    assert options == WanOptions(
        "/models/wan",
        "base",
        ("look.safetensors=0.8", "other.safetensors"),
        True,
        "fast",
        "12",
        "/models/qwen",
        False,
        2,
        None,
        "public",
        "spatial",
    )
    given = {f.name for f in fields(WanOptions) if getattr(options, f.name) != f.default}
    assert given == {f.name for f in fields(WanOptions)} - {"prompt_cache"}


def test_a_server_that_is_started_for_a_shot_is_told_the_same(monkeypatch):
    seen = {}

    class Stop(Exception):
        pass

    def server(config):
        seen.update(config.options)
        raise Stop

    monkeypatch.setattr("engine_bridge.server.Server", server)
    result = CliRunner().invoke(app, ["serve", "--engine", "wan", *ALL.arguments()])
    assert isinstance(result.exception, Stop), result.output
    assert {name: seen[name] for name in ALL.options()} == ALL.options()
    assert seen["prompt_cache"].endswith("prompts")


def test_models_are_the_server_s_to_choose(tmp_path):
    arguments = [
        "--start-frame",
        "a.png",
        "--cameras",
        "b.json",
        "--out",
        str(tmp_path),
        "--server",
        "tcp://127.0.0.1:1",
    ]
    result = CliRunner().invoke(app, ["generate", *arguments, "--vram", "8"])
    assert "the server's to choose" in str(result.exception)


@pytest.mark.parametrize(
    ("gpus", "per_job", "devices", "shared"),
    [
        (None, None, ("",), None),
        (None, 2, ("",), 2),
        ("0, 1", None, ("0", "1"), 1),
        ("0+1", None, ("0,1",), 2),
        ("0+1,2 + 3", 2, ("0,1", "2,3"), 2),
    ],
)
def test_gpus_that_are_joined_share_a_job(gpus, per_job, devices, shared):
    assert share_gpus(gpus, per_job) == (devices, shared)


@pytest.mark.parametrize(
    ("gpus", "per_job", "says"),
    [
        ("0,1", 2, "join those that share a job"),
        ("0+1", 1, "join"),
        ("0+1,2", None, "same number"),
        ("0,", None, "same"),
    ],
)
def test_gpus_that_do_not_fit_the_job_are_refused_with_what_to_write(gpus, per_job, says):
    with pytest.raises(BridgeError, match=says):
        share_gpus(gpus, per_job)


def test_a_server_of_joined_gpus_tells_its_engine_how_many(monkeypatch):
    seen = []

    class Stop(Exception):
        pass

    def server(config):
        seen.append(config)
        raise Stop

    monkeypatch.setattr("engine_bridge.server.Server", server)
    for engine in ("wan", "cache"):
        result = CliRunner().invoke(app, ["serve", "--engine", engine, "--gpus", "0+1"])
        assert isinstance(result.exception, Stop), result.output
    wan, cache = seen
    assert wan.devices == cache.devices == ("0,1",)
    assert wan.options["gpus"] == 2
    assert "gpus" not in cache.options
