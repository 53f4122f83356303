"""Small shots to send, and one of every message."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine_bridge import messages as m
from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.spec import GenerateSpec

JOB = "0123456789abcdef0123456789abcdef"


def path_of(frames: int, width: int = 48, height: int = 32, first: int = 1) -> CameraPath:
    K = np.tile(np.array([[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]]), (frames, 1, 1))
    return CameraPath(np.arange(first, first + frames), 24.0, width, height, K, np.tile(np.eye(4), (frames, 1, 1)))


def shot(
    frames: int = 7, prompt: str = "", width: int = 48, height: int = 32, first: int = 1, **more: Any
) -> GenerateSpec:
    settings: dict[str, Any] = {"chunk": 5, "overlap": 1, **more}
    return GenerateSpec(
        cameras=path_of(frames, width, height, first),
        start_frame=np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3),
        depth=np.ones((height, width), np.float32),
        prompt=prompt,
        **settings,
    )


def one_of_each() -> list[Any]:
    """A message of every class, arrays and optional fields both ways."""
    rng = np.random.default_rng(0)
    submit: dict[str, Any] = {
        "request_id": 1,
        "job_id": JOB,
        "engine": "cache",
        "prompt": "ein Hof, сад, 庭",
        "negative_prompt": "",
        "strength": 0.8,
        "chunk": 49,
        "overlap": 5,
        "steps": None,
        "cache_steps": 200,
        "seed": -3,
        "priority": 2,
        "scene_scale": 2.5,
        "prompt_keys": (m.PromptKey(frame=-1, prompt="dusk"), m.PromptKey(frame=1, prompt="ночь")),
        "auto_prompt": True,
        "preset": "quality",
        "guidance": 5.5,
        "graded_validity": False,
        "fps": 24.0,
        "width": 6,
        "height": 4,
        "frames": np.array([-1, 0, 1]),
        "K": rng.normal(size=(3, 4)),
        "c2w": rng.normal(size=(3, 4, 4)),
        "start_frame": rng.integers(0, 256, (4, 6, 3), np.uint8),
    }
    info = m.JobInfo(
        job_id=JOB,
        state="failed",
        created_s=1.5,
        client="anna",
        priority=-1,
        frames=3,
        frames_done=2,
        last_seq=9,
        code="worker_died",
        message="?",
    )
    return [
        m.Hello(request_id=0, protocol_version=m.PROTOCOL_VERSION, client="test", client_id=JOB, version="1"),
        m.Submit(**submit),
        m.Submit(
            **submit,
            depth=rng.random((4, 6)).astype(np.float32),
            style_image=rng.integers(0, 256, (5, 2, 3), np.uint8),
            strength_mask=rng.uniform(-1, 1, (3, 2, 2)).astype(np.float32),
            path_depth_frames=np.array([-1, 1]),
            path_depth=np.array([[[1.0, 2.5]], [[65504.0, np.inf]]], np.float16),
        ),
        m.Submit(
            **submit, path_depth_frames=np.array([0]), path_depth=np.full((1, 3, 2), 1e10, np.float32)
        ),
        m.Draw(
            request_id=2, job_id=JOB, prompt="an abbey in the snow", negative_prompt="fog", width=832, height=480,
            seed=7, steps=50, guidance=5.0,
        ),
        m.Upload(
            request_id=2, job_id=JOB, engine="", size_bytes=9, offset=4, sha256="0" * 64,
            data=rng.integers(0, 256, 5, np.uint8),
        ),
        m.Upload(
            request_id=2, job_id=JOB, engine="cache", size_bytes=9, offset=0, sha256="0" * 64,
            data=np.zeros(0, np.uint8),
        ),
        m.Subscribe(request_id=2, job_id=JOB, after_seq=0, credit_bytes=100),
        m.Credit(job_id=JOB, credit_bytes=5),
        m.Compress(),
        m.Cancel(request_id=3, job_id=JOB),
        m.Resume(request_id=3, job_id=JOB),
        m.ListJobs(request_id=4),
        m.FetchSplats(request_id=5, job_id=JOB, revision=0, offset=0),
        m.Ping(request_id=6),
        m.Look(
            job_id=JOB, look_id=3, seen_id=2, width=6, height=4, format="jpeg", quality=80,
            K=np.full(4, 2.0), c2w=np.eye(4),
        ),
        m.Welcome(
            request_id=0, protocol_version=m.PROTOCOL_VERSION, server="s", version="1", engine="cache",
            engine_info={"a": [1, 2.5, None, True, {"b": "c"}]}, max_message_bytes=1, max_credit_bytes=2,
            view_port=5578, silence_limit_s=60.0,
        ),
        m.Error(request_id=1, code="no_depth", message="Give depth.", job_id=JOB),
        m.Accepted(request_id=1, job_id=JOB, position=3),
        m.Uploaded(request_id=2, job_id=JOB, received_bytes=9),
        m.Subscribed(request_id=2, job_id=JOB, state="running", after_seq=1, last_seq=4),
        m.Cancelling(request_id=3, job_id=JOB, state="queued"),
        m.Jobs(request_id=4, jobs=()),
        m.Jobs(request_id=4, jobs=(info, info)),
        m.SplatsBlock(
            request_id=5, job_id=JOB, revision=1, offset=0, size_bytes=9, sha256="0" * 64,
            data=rng.integers(0, 256, 9, np.uint8),
        ),
        m.SplatsBlock(
            request_id=5, job_id=JOB, revision=1, offset=9, size_bytes=9, sha256="0" * 64, data=np.zeros(0, np.uint8)
        ),
        m.Picture(
            job_id=JOB, look_id=3, revision=1, width=2, height=1, format="raw", render_ms=1.5,
            data=rng.integers(0, 256, 6, np.uint8),
        ),
        m.Pong(request_id=6),
        m.Progress(job_id=JOB, stage="cache", step=1, steps=2, chunk=0, chunks=3, fraction=0.25, eta_s=None),
        m.FrameEvent(
            job_id=JOB, seq=1, index=0, number=-5, chunk=0, attempt=2, rgb=rng.integers(0, 256, (3, 5, 3), np.uint8),
            depth=np.full((3, 5), 1e10, np.float32), validity=np.zeros((3, 5), np.uint8),
        ),
        m.ChunkCommitted(job_id=JOB, seq=2, chunk=0, attempt=2, frames=49),
        m.CacheEvent(job_id=JOB, seq=2, chunk=0, revision=1, splats=10, size_bytes=1000),
        m.NoticeEvent(job_id=JOB, seq=3, code="jump", message="The path jumps at frame 3."),
        m.StateEvent(job_id=JOB, seq=4, state="failed", code="worker_died", message="!", log_id="ab", summary={"x": 1}),
        m.RunJob(job_id=JOB, attempt=1),
        m.Drain(),
        m.StopJob(job_id=JOB),
        m.Quit(),
        m.Ready(engine_info={}),
        m.LoadFailed(code="engine_not_installed", message="!", log_id=""),
        m.Lost(how="?"),
        m.Shown(job_id=JOB, seq=3, name="psm_1", slot=1, offset=4096, size_bytes=5, frames_done=1),
        m.Logged(job_id=JOB, last_seq=1, frames_done=1),
        m.Ended(job_id=JOB, state="done", summary={"seconds": {"fill": 1.5}}),
    ]  # fmt: skip
