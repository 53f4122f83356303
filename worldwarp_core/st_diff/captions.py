"""Prompts written by a vision-language model: what lies around a frame, and the look of a picture.

In: a frame that a chunk begins with, or a style reference, and the artist's own words. Out: one paragraph for the
video model to read. The model is Qwen2.5-VL of transformers (7B: 17 GB in bfloat16; 3B: 8 GB), asked greedily, so that
the same picture and words give the same text. Its answer is data of unknown quality: it is cleaned, bounded, and what
it says of cameras or of movement is dropped, because the path is given and the world stands still.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import WorldWarpError
from ..model_files.store import locate

DEFAULT_CAPTIONER = "qwen2.5-vl-7b"

CAPTIONER_GIB = 20
"""GPU memory for the 7B model with its activations; where less is free, captions stay off."""

SCENE_WORDS = 120
LOOK_WORDS = 40
TOKENS_PER_WORD = 2
"""More than English needs, so that an answer of the right length is never cut."""

MAX_PIXELS = 512 * 28 * 28
"""What the model looks at: a frame of 720x480 whole. A token is 28x28 pixels."""

MAX_ASPECT = 20
"""Of a style reference: a strip thinner than this shows no look."""

SCENE = """\
This is one frame of a film of a place that stands perfectly still. Write the text from which a video model will \
continue the film beyond the edges of this frame.

Describe the place itself: what it is, its layout, materials, colours, light and its direction, weather and time of \
day, and the style in which it is drawn, rendered or photographed. Then describe what most plausibly lies just outside \
the frame, to the left, to the right, above, below and further on, so that it belongs to the same place.

Rules: one paragraph of 80 to 120 words, in plain present-tense English. Nothing moves. Mention no people or animals \
unless they are statues or pictures. Do not speak of a camera, a shot, a frame, an image or a viewer. No lists, no \
headings, no introduction, no comment: only the description.\
"""

SCENE_WITH_WORDS = """\


The artist has said about this place: "{words}" Agree with that, and do not repeat it.\
"""

LOOK = """\
Describe only the look of this picture, so that another place can be shown in the same look: medium or technique, \
palette, light and contrast, texture, finish, and period or school if it has one. Name nothing that the picture shows: \
no objects, people or places. One paragraph of 20 to 40 words, in plain English. No introduction, no comment.\
"""

# Sentences about how the film is made, or about something that moves, work against a given path through a still world.
_UNWANTED = re.compile(
    r"\b(cameras?|cameraman|shots?|zoom\w*|pan(?:s|ned|ning)|dolly|footage|viewers?|lens(?:es)?|"
    r"the (?:frame|image|picture|photo\w*|video|scene continues)|walk(?:s|ing)|runn?(?:s|ing)|driv(?:es|ing)|"
    r"mov(?:es|ing))\b",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|here(?:'s| is| are)|description|caption)\b[^.:!]*[:!.]\s*)+", re.IGNORECASE
)


class Captioner(Protocol):
    """Answers an instruction about a picture."""

    def answer(self, picture: Tensor, instruction: str, max_tokens: int) -> str:
        """Text, as the model wrote it, for an (H, W, 3) picture in [0, 1]."""
        ...


def describe_scene(captioner: Captioner, frame: Tensor, words: str = "") -> str:
    """Returns at most 120 words on the place in an (H, W, 3) frame in [0, 1] and around it; "" if nothing was usable.

    `words` are the artist's own: the description agrees with them.
    """
    instruction = SCENE + (SCENE_WITH_WORDS.format(words=_one_line(words)) if words.strip() else "")
    return clean_caption(captioner.answer(frame, instruction, TOKENS_PER_WORD * SCENE_WORDS), SCENE_WORDS)


def describe_look(captioner: Captioner, picture: Tensor) -> str:
    """Returns at most 40 words on how an (H, W, 3) picture in [0, 1] looks, naming nothing that it shows.

    Raises:
        WorldWarpError: `bad_settings` when the picture is a strip.
    """
    height, width = picture.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise WorldWarpError(
            "bad_settings",
            f"The style image is {width}x{height}: too thin a strip to show a look. Choose one nearer to a square.",
        )
    return clean_caption(captioner.answer(picture, LOOK, TOKENS_PER_WORD * LOOK_WORDS), LOOK_WORDS)


def compose_prompt(words: str, scene: str = "", look: str = "") -> str:
    """Returns one prompt: the artist's words first, as they are, then the described place, then the look."""
    look = look.strip()
    parts = [part for part in (words.strip(), scene.strip(), f"Style: {look}" if look else "") if part]
    ended = [part if part.endswith((".", "!", "?")) else f"{part}." for part in parts[:-1]]
    return " ".join([*ended, *parts[-1:]])


def clean_caption(answer: str, max_words: int) -> str:
    """Returns the usable sentences of a model's answer as one line of at most `max_words` words."""
    text = "".join(c if c.isprintable() or c.isspace() else " " for c in answer.replace("\ufffd", " "))
    text = re.sub(r"[*_#`>|]+|^\s*(?:[-•]|\d+[.)])\s+", " ", text, flags=re.MULTILINE)
    text = _PREAMBLE.sub("", _one_line(text).strip("\"'“”‘’ "))
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        if _UNWANTED.search(sentence):
            continue
        room = max_words - sum(len(s.split()) for s in kept)
        if len(sentence.split()) > room:
            # Half a sentence says half a thing, unless it is all there is.
            kept += [] if kept else [" ".join(sentence.split()[:room])]
            break
        kept.append(sentence)
    return " ".join(kept).strip("\"'“”‘’ ")


@contextmanager
def open_captioner(
    name: str | Path = DEFAULT_CAPTIONER, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> Iterator[QwenCaptioner]:
    """Loads a captioner for the length of a block, and frees it."""
    captioner = QwenCaptioner(name, device, dtype)
    try:
        yield captioner
    finally:
        captioner.close()


class QwenCaptioner:
    """Qwen2.5-VL from a folder or, by its name, from the local Hugging Face cache. Nothing is fetched, no code is run.

    Raises:
        WorldWarpError: `no_weights` where it is not there, with the command that fetches it; `bad_weights` where it
            is another model.
    """

    def __init__(self, name: str | Path, device: torch.device | str, dtype: torch.dtype) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        folder = locate(str(name), what="the captioner")
        try:
            config = AutoConfig.from_pretrained(folder, **local)
            if config.model_type != "qwen2_5_vl":
                raise WorldWarpError(
                    "bad_weights",
                    f"{name} is a model of type {config.model_type!r}; captions need a Qwen2.5-VL, such as "
                    f"{DEFAULT_CAPTIONER}.",
                )
            # The parts of its processor that pictures need; the whole one wants torchvision, for videos.
            self._pictures: Any = AutoImageProcessor.from_pretrained(folder, **local)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **local)
            model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, **local
            )
        except OSError as error:
            raise WorldWarpError(
                "no_weights",
                f"The folder {folder} holds no complete Qwen2.5-VL: config.json, preprocessor_config.json, the "
                f"tokenizer and its safetensors files are needed. Run: worldwarp models download {DEFAULT_CAPTIONER}",
            ) from error
        except (ValueError, RuntimeError) as error:
            raise WorldWarpError("bad_weights", f"{name} could not be loaded as a Qwen2.5-VL: {error}"[:400]) from error
        self._model = model.to(device).eval()

    @torch.no_grad()
    def answer(self, picture: Tensor, instruction: str, max_tokens: int) -> str:
        """Text for an (H, W, 3) picture in [0, 1]: greedy, at most `max_tokens` long."""
        pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        size = {"shortest_edge": 4 * 28 * 28, "longest_edge": MAX_PIXELS}  # areas, whatever their names
        seen = self._pictures(images=[pixels], return_tensors="pt", size=size, input_data_format="channels_last")
        question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}
        text = self._tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
        place = self._tokenizer.convert_ids_to_tokens(self._model.config.image_token_id)
        count = int(seen["image_grid_thw"].prod()) // self._pictures.merge_size**2
        tokens = self._tokenizer(text.replace(place, place * count), return_tensors="pt")
        inputs = {**tokens, **seen}
        inputs["mm_token_type_ids"] = (tokens.input_ids == self._model.config.image_token_id).int()
        inputs = {key: value.to(self._model.device) for key, value in inputs.items()}
        written = self._model.generate(
            **inputs, max_new_tokens=max_tokens, do_sample=False, temperature=None, top_p=None, top_k=None
        )
        return self._tokenizer.decode(written[0, tokens.input_ids.shape[1] :], skip_special_tokens=True)

    def close(self) -> None:
        """Frees the model's memory; it cannot be asked any more."""
        on_cuda = self._model.device.type == "cuda"
        del self._model
        gc.collect()
        if on_cuda:
            torch.cuda.empty_cache()


def _one_line(text: str) -> str:
    return " ".join(text.split())
