"""What the video model reads: prompts as UMT5 embeddings, kept on disk.

In: texts, and where Wan's text encoder lies. Out: (P, 512, D) embeddings as diffusers' `WanPipeline` makes them: one
row a token, zeros after the text. The encoder is 11 GB and a prompt is read once for hundreds of passes, so it is
loaded only for a text that was never embedded before, and let go at once.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..atomic_write import atomic_write
from ..errors import WorldWarpError
from .weights import ModelFiles, load_text_encoder

log = logging.getLogger(__name__)

TOKENS = 512
"""Rows of an embedding: what Wan 2.1 was trained with (method section 2)."""

TEXT_ENCODER_GIB = 13
"""GPU memory that UMT5-XXL takes in bfloat16, activations included; where less is free, it runs on the CPU."""

CACHE_BYTES = 2 * 2**30
"""Room for some thousand prompts; beyond it those unused for longest go."""


class TextEmbedder:
    """Embeds prompts, from disk where it can.

    Args:
        files: the model folders.
        cache_dir: where embeddings are kept; made where it is missing. Safe to share between processes.
        device: where the encoder runs and the embeddings are put.
        dtype: of the encoder and of the embeddings.
        cache_bytes: how much disk space the embeddings may take.
    """

    def __init__(
        self,
        files: ModelFiles,
        cache_dir: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._files = files
        self._cache_dir = Path(cache_dir)
        self._device = torch.device(device)
        self._dtype = dtype
        self._cache_bytes = cache_bytes
        self._model = files.text_identity

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Returns (P, 512, D) embeddings of P texts on the device; a text beyond 512 tokens loses its end.

        Raises:
            WorldWarpError: what `load_text_encoder` raises, where a text is new and the encoder is not there.
        """
        texts = [prompt_clean(prompt) for prompt in prompts]
        known = {text: self._read(text) for text in dict.fromkeys(texts)}
        missing = [text for text, rows in known.items() if rows is None]
        if missing:
            for text, rows in zip(missing, self._encode(missing), strict=True):
                known[text] = rows
                self._write(text, rows)
        padded = [
            torch.cat([r, r.new_zeros(TOKENS - len(r), r.shape[1])]) for r in map(known.get, texts) if r is not None
        ]
        return torch.stack(padded).to(self._device)

    def _encode(self, texts: list[str]) -> list[Tensor]:
        """(n, D) on the CPU for each text, n its tokens; the encoder is there for this call alone."""
        tokenizer, encoder = load_text_encoder(self._files, self._dtype)
        try:
            encoder.to(self._device).eval()
            return [_embed_one(tokenizer, encoder, text) for text in texts]
        finally:
            del encoder
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _path(self, text: str) -> Path:
        key = hashlib.sha256(f"{self._model}\n{self._dtype}\n{TOKENS}\n{text}".encode()).hexdigest()
        return self._cache_dir / f"{key}.safetensors"

    def _read(self, text: str) -> Tensor | None:
        """(n, D) on the CPU; None where the text is new or its file is damaged."""
        path = self._path(text)
        try:
            with safe_open(path, "pt") as file:
                rows, digest = file.get_tensor("rows"), (file.metadata() or {}).get("sha256")
            if rows.ndim != 2 or len(rows) > TOKENS or rows.dtype != self._dtype or digest != _digest(rows):
                raise SafetensorError("its contents are not what was written")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            log.warning("The cached prompt embedding %s is damaged (%s); it is computed again.", path, error)
            return None
        return rows

    def _write(self, text: str, rows: Tensor) -> None:
        try:
            with atomic_write(self._path(text)) as partial:
                save_file({"rows": rows}, partial, {"sha256": _digest(rows)})
            self._make_room()
        except (WorldWarpError, SafetensorError, OSError) as error:
            log.warning("A prompt embedding could not be kept, so it will be computed again: %s", error)

    def _make_room(self) -> None:
        """Deletes the embeddings unused for longest until the rest fits."""
        entries = []
        for path in self._cache_dir.glob("*.safetensors"):
            try:
                entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            except FileNotFoundError:  # another process made room too
                continue
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._cache_bytes:
                return
            try:
                path.unlink(missing_ok=True)
            except PermissionError:  # Windows keeps a file that somebody reads
                continue
            total -= size


@torch.no_grad()
def _embed_one(tokenizer, encoder, text: str) -> Tensor:  # type: ignore[no-untyped-def]
    """(n, D) on the CPU, contiguous. Padded to 512 before encoding, as diffusers does: one shape, the same numbers."""
    tokens = tokenizer(
        text,
        padding="max_length",
        max_length=TOKENS,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    used = int(tokens.attention_mask.sum())
    if used == TOKENS:
        log.warning("A prompt fills all %d tokens that the video model reads; what goes beyond is cut off.", TOKENS)
    device = encoder.device
    rows = encoder(tokens.input_ids.to(device), tokens.attention_mask.to(device)).last_hidden_state[0, :used]
    return rows.cpu().clone()


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
