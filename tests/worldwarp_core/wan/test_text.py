"""Prompts as embeddings, as diffusers' own pipeline makes them, kept on disk."""

import gc
import logging
import os
import weakref

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from tests.support.tiny_wan import TEXT_DIM, save_tiny_wan
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.wan import text
from worldwarp_core.wan.text import TOKENS, TextEmbedder
from worldwarp_core.wan.weights import load_text_encoder, resolve_models

PROMPTS = ["A quiet courtyard of warm stone", "", "  Rock &amp; snow\n\n everywhere\u2026 ", "stone " * 700]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return resolve_models(str(save_tiny_wan(tmp_path_factory.mktemp("wan"))))


@pytest.fixture
def loads(monkeypatch):
    """A weak reference to the encoder for each time that it was loaded."""
    encoders = []

    def counted(*arguments):
        tokenizer, encoder = load_text_encoder(*arguments)
        encoders.append(weakref.ref(encoder))
        return tokenizer, encoder

    monkeypatch.setattr(text, "load_text_encoder", counted)
    return encoders


def embedder(files, folder, **changes):
    return TextEmbedder(files, folder, **({"dtype": torch.float32} | changes))


def test_embeddings_are_those_of_diffusers_own_pipeline(files, tmp_path):
    pipeline = WanPipeline.from_pretrained(files.base, dtype=torch.float32)
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=TOKENS)
    ours = embedder(files, tmp_path).embed(PROMPTS)
    assert ours.shape == (len(PROMPTS), TOKENS, TEXT_DIM)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert (ours[0, 100:] == 0).all(), "zeros follow the text"
    assert ours[3, -1].abs().sum() > 0, "a text that is too long fills every row"


def test_what_was_embedded_before_needs_no_encoder(files, tmp_path, loads):
    first = embedder(files, tmp_path).embed(PROMPTS[:2])
    again = embedder(files, tmp_path).embed([PROMPTS[1], PROMPTS[0], PROMPTS[0]])
    assert len(loads) == 1
    assert torch.equal(again, first[[1, 0, 0]])


def test_the_encoder_is_loaded_once_for_all_new_texts_and_then_freed(files, tmp_path, loads):
    embedder(files, tmp_path).embed(PROMPTS)
    [encoder] = loads
    gc.collect()
    assert encoder() is None


def test_texts_that_read_alike_share_an_entry(files, tmp_path, loads):
    embedder(files, tmp_path).embed(["stone  wall"])
    embedder(files, tmp_path).embed([" stone wall\n"])
    assert len(loads) == 1


def test_another_precision_or_another_encoder_has_its_own_entries(files, tmp_path, loads, tmp_path_factory):
    embedder(files, tmp_path).embed(["stone"])
    half = embedder(files, tmp_path, dtype=torch.bfloat16).embed(["stone"])
    assert half.dtype == torch.bfloat16
    other = resolve_models(str(save_tiny_wan(tmp_path_factory.mktemp("other"))))
    embedder(other, tmp_path).embed(["stone"])
    assert len(loads) == 3
    assert len(list(tmp_path.iterdir())) == 3


def cut(path):
    path.write_bytes(path.read_bytes()[:-16])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)


def replace_rows(path):
    save_file({"rows": torch.zeros(3, TEXT_DIM)}, path)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, replace_rows, empty], ids=lambda d: d.__name__)
def test_a_damaged_entry_is_computed_again_and_said(files, tmp_path, loads, caplog, damage):
    whole = embedder(files, tmp_path).embed(["stone"])
    [entry] = tmp_path.iterdir()
    damage(entry)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(embedder(files, tmp_path).embed(["stone"]), whole)
    assert "computed again" in caplog.text
    assert len(loads) == 2
    assert torch.equal(embedder(files, tmp_path).embed(["stone"]), whole)
    assert len(loads) == 2, "the entry is whole again"


def test_a_cache_that_cannot_be_written_costs_time_only(files, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        assert embedder(files, blocked / "cache").embed(["stone"]).shape == (1, TOKENS, TEXT_DIM)
    assert "could not be kept" in caplog.text


def test_entries_unused_for_longest_make_room(files, tmp_path):
    make = embedder(files, tmp_path)
    long = "snow " * 20
    for age, prompt in enumerate(["stone", long, "sun"]):
        make.embed([prompt])
        os.utime(make._path(prompt.strip()), (age, age))
    make.embed(["stone"])  # used again: newest now
    room = sum(entry.stat().st_size for entry in tmp_path.iterdir())
    embedder(files, tmp_path, cache_bytes=room).embed(["wall"])
    assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) <= room
    assert {p for p in ("stone", long, "sun", "wall") if make._path(p.strip()).exists()} == {"stone", "sun", "wall"}


def test_an_entry_that_is_being_read_stays_and_another_goes_in_its_place(files, tmp_path, monkeypatch):
    """As on Windows, where a file that is mapped into memory cannot be deleted."""
    make = embedder(files, tmp_path)
    for age, prompt in enumerate(["stone", "sun"]):
        make.embed([prompt])
        os.utime(make._path(prompt), (age, age))
    unlink = type(tmp_path).unlink

    def kept(path, missing_ok=False):
        if path == make._path("stone"):
            raise PermissionError(13, "The process cannot access the file because it is being used")
        unlink(path, missing_ok)

    monkeypatch.setattr(type(tmp_path), "unlink", kept)
    room = sum(entry.stat().st_size for entry in tmp_path.iterdir())
    embedder(files, tmp_path, cache_bytes=room).embed(["wall"])
    assert {p for p in ("stone", "sun", "wall") if make._path(p).exists()} == {"stone", "wall"}


def test_an_entry_holds_the_text_alone_without_its_padding(files, tmp_path):
    embedder(files, tmp_path).embed(["stone"])
    [entry] = tmp_path.iterdir()
    assert len(load_file(entry)["rows"]) < 10


def test_a_missing_encoder_is_an_error_only_where_a_text_is_new(files, tmp_path, monkeypatch):
    embedder(files, tmp_path).embed(["stone"])

    def gone(*arguments):
        raise WorldWarpError("no_weights", "It is not here.")

    monkeypatch.setattr(text, "load_text_encoder", gone)
    embedder(files, tmp_path).embed(["stone"])
    with pytest.raises(WorldWarpError, match="not here"):
        embedder(files, tmp_path).embed(["snow"])
