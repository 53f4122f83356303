"""The command line: `worldwarp serve`, `generate`, `demo` and the others that `worldwarp --help` lists.

A user's mistake is one sentence and exit code 1, never a traceback; Ctrl-C is exit code 130, with what was delivered
kept. What a command needs is imported when it runs, so that each works with no more installed than it needs.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from worldwarp_core.errors import WorldWarpError

from . import cli_eval, cli_first_frame, cli_models, cli_train
from .cli_engine import (
    CaptionerName,
    Distilled,
    EngineArguments,
    GpusPerJob,
    Loras,
    MaskRule,
    NoCompile,
    Noise,
    Preset,
    Transformer,
    Vram,
    Weights,
    share_gpus,
)
from .cli_keys import keys_app
from .client import GONE_TIMEOUT_S, Client, ClientEvent, ConnectionLost, Sending
from .commits import Commits
from .errors import BridgeError, printable
from .keys import default_keys_dir, read_client_key
from .messages import DEFAULT_ADDRESS, NoticeEvent, StateEvent
from .messages import Progress as ProgressEvent
from .stages import sending_in_words, stage_in_words

app = typer.Typer(
    help="Fly an animated camera through a world that does not exist yet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(keys_app, name="keys")
out_console = Console()
console = Console(stderr=True)
_verbose = False


def _set_verbose(value: bool) -> bool:
    global _verbose
    _verbose = _verbose or value
    return value


Verbose = Annotated[bool, typer.Option("--verbose", callback=_set_verbose, help="Say more, tracebacks included.")]
Server = Annotated[str, typer.Option("--server", help="Address of the server.")]
Key = Annotated[
    Path | None, typer.Option("--key", help="Key file for a server on another machine (see `worldwarp keys`).")
]
ENGINE_HELP = "What fills in what has not been seen: preview, cache or wan"
ENGINE_DEFAULT = "preview"
DepthModel = Annotated[
    str | None,
    typer.Option("--depth-model", help="Depth model (name or folder, transformers) for pictures without depth."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Factory = Annotated[str, typer.Option("--engine-factory", hidden=True, help="module:function that makes the engine.")]

DEFAULT_FACTORY = "worldwarp_core.api:load_engine"
PRIVATE_CONNECT_TIMEOUT_S = 20.0
PRIVATE_GONE_TIMEOUT_S = 5.0


def main() -> None:
    """The `worldwarp` program."""
    # A pipe on Windows has an old code page: a name that it cannot hold must not cost a shot its success.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
    except WorldWarpError as error:
        _say_error(error.message)
        code = 130 if error.code == "cancelled" else 1
    except (KeyboardInterrupt, typer.Abort):
        _say_error("Stopped.")
        code = 130
    except Exception as error:
        # Wrong usage is the parser's to explain; it comes with a code of its own.
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            error.show()
            code = error.exit_code
        else:
            if _verbose:
                console.print_exception()
            _say_error(f"Something unexpected went wrong ({type(error).__name__}: {error}). --verbose shows where.")
            code = 1
    sys.exit(code if isinstance(code, int) else 0)


# ---------------------------------------------------------------- serve


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 5577,
    host: Annotated[str, typer.Option(help="Any but this machine needs --keys; or use an SSH tunnel.")] = "127.0.0.1",
    keys: Annotated[
        bool, typer.Option("--keys", help="Let in only clients with a key (see `worldwarp keys`).")
    ] = False,
    keys_dir: Annotated[Path | None, typer.Option(help="With --keys: where they are (the user's settings).")] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            help="A worker for each of these GPUs, as in 0,1; each runs one job at a time. 0+1 is one worker of two "
            "GPUs, which share each chunk's work."
        ),
    ] = None,
    executor: Annotated[
        str, typer.Option(help="Where the engines run: process (this machine) or ray (a Ray cluster that is there).")
    ] = "process",
    ray_address: Annotated[
        str, typer.Option(help="With --executor ray: HOST:PORT of its head; auto finds the one this machine is in.")
    ] = "auto",
    ray_workers: Annotated[
        int | None, typer.Option(help="With --executor ray: how many; one for each GPU there if not given.", min=1)
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", help=f"{ENGINE_HELP} ({ENGINE_DEFAULT}).")] = None,
    device: Device = "auto",
    depth_model: DepthModel = None,
    weights: Weights = None,
    transformer: Transformer = None,
    lora: Loras = None,
    distilled: Distilled = False,
    vram: Vram = None,
    captioner: CaptionerName = None,
    no_compile: NoCompile = False,
    gpus_per_job: GpusPerJob = None,
    mask_rule: MaskRule = None,
    noise: Noise = None,
    preset: Preset = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where jobs are kept, for this server alone (the user's cache folder).")
    ] = None,
    keep_gib: Annotated[
        float, typer.Option(help="Disk space for ended jobs in GiB; the oldest beyond it are deleted.", min=0)
    ] = 20.0,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Show metrics in Prometheus' format on this port of this machine.", min=0, max=65535),
    ] = None,
    view: Annotated[bool, typer.Option("--view/--no-view", help="Let clients look around in the world.")] = True,
    engine_factory: Factory = DEFAULT_FACTORY,
    ready_file: Annotated[Path | None, typer.Option(hidden=True)] = None,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
    verbose: Verbose = False,
) -> None:
    """Run the engine for clients, until Ctrl-C. A job that runs then goes on with the next start."""
    from worldwarp_core.api import default_engine
    from worldwarp_core.atomic_write import atomic_write

    from .server import Server as JobServer
    from .server import ServerConfig
    from .store import default_data_dir
    from .store_lock import LEAVING_S

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    engine = engine or default_engine()
    _check_engine(engine, engine_factory)
    learned = EngineArguments(
        weights,
        transformer,
        tuple(lora or ()),
        distilled,
        vram,
        captioner,
        no_compile,
        gpus_per_job,
        preset,
        mask_rule,
        noise,
    ).options()
    devices, shared = share_gpus(gpus, gpus_per_job)
    if engine == "wan" and shared is not None:
        learned["gpus"] = shared
    options = {"device": device, "depth_model": depth_model, **learned}
    ray = None
    if executor == "ray":
        from .ray_engine import places_on

        if gpus:
            raise BridgeError("bad_settings", "On a Ray cluster Ray chooses the GPUs: --ray-workers, not --gpus.")
        ray, count = places_on(ray_address, workers=ray_workers, gpus_each=gpus_per_job, device=device)
        devices = ("",) * count
    elif executor != "process":
        raise BridgeError("bad_settings", f"--executor is process or ray; got {executor!r}.")
    elif ray_workers is not None or ray_address != "auto":
        raise BridgeError("bad_settings", "--ray-address and --ray-workers need --executor ray.")
    # On a cluster every node keeps its own, beside its models.
    if engine == "wan" and ray is None:
        options["prompt_cache"] = str(default_data_dir().parent / "prompts")
    config = ServerConfig(
        address=f"tcp://{f'[{host}]' if ':' in host else host}:{port or '*'}",
        data_dir=data_dir or default_data_dir(),
        engine=engine,
        factory=engine_factory,
        options=options,
        keep_bytes=int(keep_gib * 2**30),
        metrics_port=metrics_port,
        # A server of one command's own has nobody who looks.
        view=view and not until_stdin_closes,
        # The one before was a command's own, too, and leaves since that was killed.
        server_leaves_s=LEAVING_S if until_stdin_closes else 0.0,
        keys_dir=(keys_dir or default_keys_dir()) if keys or keys_dir else None,
        devices=devices,
        ray=ray,
    )
    server = JobServer(config)
    server.handle_signals()
    if ready_file is not None:
        with atomic_write(ready_file) as partial:
            partial.write_text(server.address, "utf-8")
    else:
        out_console.print(f"WorldWarp server on {server.address}, jobs in {config.data_dir}. Ctrl-C stops it.")
    if until_stdin_closes:

        def wait_for_end() -> None:
            # Not by way of sys.stdin: a read of it that still waits makes the end of the program a crash.
            while os.read(0, 1):
                pass
            # Twice, which is at once: nobody is there to take what would still be made.
            server.stop()
            server.stop()

        threading.Thread(target=wait_for_end, daemon=True).start()
    server.serve()


# ---------------------------------------------------------------- generate


@app.command()
def generate(
    start_frame: Annotated[Path, typer.Option(help="Picture seen from the path's first camera.")],
    cameras: Annotated[Path, typer.Option(help="cameras.json, a transforms.json, or an .npz with c2w and K.")],
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")],
    depth: Annotated[Path | None, typer.Option(help="Depth of the start frame: EXR, NPY or 16-bit PNG.")] = None,
    depth_scale: Annotated[float | None, typer.Option(help="Scene units of one step of a 16-bit PNG.")] = None,
    path_depth: Annotated[
        Path | None,
        typer.Option(help="Folder with the scene's depth along the path (EXR or NPY, named by frame): it is kept to."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help=f"{ENGINE_HELP} (with --server, whichever it runs; {ENGINE_DEFAULT})."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What the world is like.")] = "",
    negative_prompt: Annotated[str, typer.Option(help="What it is not.")] = "",
    strength: Annotated[
        float | None, typer.Option(help="How much is made anew where the world is known, in (0, 1]; else the engine's.")
    ] = None,
    chunk: Annotated[int, typer.Option(help="Frames made together, 4k + 1.")] = 49,
    overlap: Annotated[int, typer.Option(help="Frames shared by neighbouring chunks, 4k + 1.")] = 5,
    preset: Preset = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    cache_steps: Annotated[int | None, typer.Option(help="Optimisation steps of the first fit of the world.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    prompt_key: Annotated[
        list[str] | None, typer.Option(help="FRAME=PROMPT: another prompt from that frame on; may be repeated.")
    ] = None,
    auto_prompt: Annotated[bool, typer.Option("--auto-prompt", help="Let a captioner describe what is seen.")] = False,
    style_image: Annotated[Path | None, typer.Option(help="Picture whose look is described into the prompts.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely the prompt is followed, at least 1.")] = None,
    strength_mask: Annotated[
        Path | None, typer.Option(help="Picture (mid grey: no change) or .npy added to the strength by region.")
    ] = None,
    graded_validity: Annotated[
        bool, typer.Option("--graded-validity", help="Let doubtful regions change more than certain ones.")
    ] = False,
    scene_scale: Annotated[
        float | None,
        typer.Option(help="Median depth of the start frame in scene units, where a model estimates its depth."),
    ] = None,
    depth_model: DepthModel = None,
    device: Device = "auto",
    weights: Weights = None,
    transformer: Transformer = None,
    lora: Loras = None,
    distilled: Distilled = False,
    vram: Vram = None,
    captioner: CaptionerName = None,
    no_compile: NoCompile = False,
    gpus_per_job: GpusPerJob = None,
    mask_rule: MaskRule = None,
    noise: Noise = None,
    server: Annotated[str | None, typer.Option(help=f"A running server, such as {DEFAULT_ADDRESS}.")] = None,
    key: Key = None,
    exr: Annotated[
        bool, typer.Option("--exr", help="Write each frame as scene-linear EXR too (frames_exr/, half float).")
    ] = False,
    compress: Annotated[
        bool, typer.Option("--compress", help="Frames come compressed: for a network slower than about 100 MB/s.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier job's files in --out.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the job in --out, given the same inputs and settings.")
    ] = False,
    engine_factory: Factory = DEFAULT_FACTORY,
    verbose: Verbose = False,
) -> None:
    """Make a shot: what a camera path sees, and the world of it."""
    import numpy as np

    from worldwarp_core.api import default_engine
    from worldwarp_core.cameras.files import read_cameras
    from worldwarp_core.pictures.files import (
        read_depth,
        read_path_depth,
        read_start_frame,
        read_strength_mask,
        read_style_image,
    )
    from worldwarp_core.spec import GenerateSpec

    # Not the preset: that is the shot's.
    learned = EngineArguments(
        weights,
        transformer,
        tuple(lora or ()),
        distilled,
        vram,
        captioner,
        no_compile,
        gpus_per_job,
        mask_rule=mask_rule,
        noise=noise,
    )
    own_engine = engine or default_engine()
    options = ["--engine", own_engine, "--device", device, "--engine-factory", engine_factory]
    options += ["--depth-model", depth_model] if depth_model else []
    options += learned.arguments()
    if server is not None and (depth_model is not None or device != "auto" or learned != EngineArguments()):
        raise BridgeError(
            "bad_settings", "Models, memory and device are the server's to choose: give them to `worldwarp serve`."
        )
    if server is None:
        _check_engine(own_engine, engine_factory)
    picture = read_start_frame(start_frame)
    # A file that does not say its size is of the start frame's.
    path = read_cameras(cameras, width=picture.shape[1], height=picture.shape[0])
    spec = GenerateSpec(
        cameras=path,
        start_frame=picture,
        depth=None if depth is None else np.asarray(read_depth(depth, scale=depth_scale), np.float32),
        prompt=prompt,
        negative_prompt=negative_prompt,
        strength=strength,
        chunk=chunk,
        overlap=overlap,
        steps=steps,
        cache_steps=cache_steps,
        seed=seed,
        scene_scale=scene_scale,
        prompt_keys=_prompt_keys(prompt_key or []),
        auto_prompt=auto_prompt,
        style_image=None if style_image is None else read_style_image(style_image),
        preset=preset or "",
        guidance=guidance,
        strength_mask=None if strength_mask is None else read_strength_mask(strength_mask),
        graded_validity=graded_validity,
        path_depth=None if path_depth is None else read_path_depth(path_depth, path.frames),
    )
    files = {
        "start_frame": start_frame, "depth": depth, "cameras": cameras,
        "style_image": style_image, "strength_mask": strength_mask, "path_depth": path_depth,
    }  # fmt: skip
    inputs = {name: None if file is None else str(file) for name, file in files.items()}
    make_shot(
        spec, out, engine=engine, server=server, key=key, server_options=options, inputs=inputs, overwrite=overwrite,
        resume=resume, linear_copies=exr, compress=compress,
    )  # fmt: skip


def _prompt_keys(written: list[str]) -> tuple[Any, ...]:
    """FRAME=PROMPT of each, in the order of their frames."""
    from worldwarp_core.spec import PromptKey

    keys = []
    for text in written:
        frame, equals, prompt = text.partition("=")
        try:
            keys.append(PromptKey(int(frame), prompt.strip()))
        except ValueError:
            equals = ""
        if not equals:
            raise BridgeError("bad_settings", f"A prompt key is FRAME=PROMPT, as in 48='a dark forest'; got {text!r}.")
    return tuple(sorted(keys, key=lambda key: key.frame))


def make_shot(
    spec: Any,
    out: Path,
    *,
    engine: str | None,
    server: str | None,
    server_options: list[str],
    inputs: dict[str, Any],
    overwrite: bool,
    key: Path | None = None,
    resume: bool = False,
    linear_copies: bool = False,
    compress: bool = False,
) -> None:
    """Has a job made into `out` with a progress bar; returns only when all of it is there and whole.

    With `resume` it is the job that is in `out` already, which goes on after what the server has of it. `engine` is the
    one that the server must be running; None takes any.

    Raises:
        WorldWarpError: why it is not; `cancelled` after Ctrl-C.
    """
    import uuid

    from .deliver import deliver
    from .job_folder import JobFolder, check_free, read_job
    from .preview import sequence, write_video
    from .private_server import own_server

    job_id = uuid.uuid4().hex
    if resume:
        earlier = read_job(out)
        job_id = str(earlier["job_id"])
        if earlier.get("state") == "done":
            raise BridgeError("bad_settings", f"The job in {out} is done; there is nothing to go on with.")
    settings = {
        "engine": engine,
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt,
        "strength": spec.strength,
        "chunk": spec.chunk,
        "overlap": spec.overlap,
        "steps": spec.steps,
        "cache_steps": spec.cache_steps,
        "seed": spec.seed,
        "scene_scale": spec.scene_scale,
        "prompt_keys": [[key.frame, key.prompt] for key in spec.prompt_keys],
        "auto_prompt": spec.auto_prompt,
        "preset": spec.preset,
        "guidance": spec.guidance,
        "graded_validity": spec.graded_validity,
        "width": spec.cameras.width,
        "height": spec.cameras.height,
        "fps": spec.cameras.fps,
    }
    if not resume:
        check_free(out, overwrite=overwrite)
    was_there = out.exists()
    started_s = time.monotonic()
    own = out / ".server"
    folder: JobFolder | None = None
    if server is None and not resume:
        # What a command left that was killed: its server would go on with its job.
        shutil.rmtree(own, ignore_errors=True)
    try:
        with ExitStack() as open_until_done:
            private = None if server is not None else open_until_done.enter_context(own_server(own, server_options))
            address = private.address if private is not None else str(server)
            client = open_until_done.enter_context(
                _client(address, key, private=private is not None, compress=compress)
            )
            stopped = open_until_done.enter_context(_stop_on_signal())
            settings["engine"] = client.connect().engine
            # Only now: a server that is not there must cost nobody the shot that is in the folder.
            folder = JobFolder(
                out,
                job_id=job_id,
                frames=spec.cameras.frames,
                settings=settings,
                records={"inputs": inputs},
                overwrite=overwrite,
                linear_copies=linear_copies,
            )
            (out / "server.log").unlink(missing_ok=True)  # of an earlier job here that failed
            # Once more the last event that is here: a job may have ended with it.
            after_seq = max(folder.last_seq - 1, 0) if resume else 0
            client.submit(spec, engine=engine or "", job_id=job_id, after_seq=after_seq, resume=resume)

            def stop() -> bool:
                if private is not None:
                    private.check()
                return stopped.is_set()

            with _Bar(len(spec.cameras)) as bar:
                end = deliver(client, job_id, folder, on_event=bar.show, stop=stop)
    except BaseException as error:
        # First, as it may make room where the disk is full.
        _put_away(own, out)
        if folder is None:
            if not was_there:
                # Nothing came of it, so nothing is left of it; a log that explains it keeps the folder.
                with suppress(OSError):
                    out.rmdir()
            raise
        code = "cancelled" if isinstance(error, KeyboardInterrupt) else getattr(error, "code", "unexpected")
        with suppress(WorldWarpError):
            folder.fail(code, str(error) or "Stopped before the job had ended.")
        raise
    _put_away(own, out, done=end.state == "done")
    folder.note(seconds_total=round(time.monotonic() - started_s, 3))
    if pictures := sequence(out / "frames"):
        write_video(pictures, out / "preview.mp4", spec.cameras.fps)
    if end.state != "done":
        kept = [f"{len(pictures)} of {len(spec.cameras)} frames are in {out}."] if pictures else []
        if server is not None or own.exists():
            kept.append("The same command with --resume goes on with it.")
        if end.state == "cancelled":
            raise BridgeError("cancelled", " ".join(["Cancelled.", *kept]))
        log = f"Its log is {out / 'server.log'}." if end.log_id and server is None else ""
        raise WorldWarpError(end.code, "\n".join([end.message, log, " ".join(kept)]))
    if faults := folder.missing():
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise BridgeError("incomplete", f"Not all of the job is in {out}: {'; '.join(faults[:3])}{more}.")
    out_console.print(
        f"{len(pictures)} frames, depth, masks, splats.ply, preview.mp4 and job.json in {out} "
        f"({time.monotonic() - started_s:.0f} s)",
        soft_wrap=True,
    )


def _put_away(own: Path, out: Path, *, done: bool = False) -> None:
    """Removes the private server's jobs, unless there is one to go on with: one not `done` that has committed chunks.

    Its log stays beside the results where something in it may be asked for.
    """
    log = own / "server.log"
    if log.is_file() and b" ERROR " in log.read_bytes():
        log.replace(out / "server.log")
    if done or not any(Commits(state.parent).read().frames for state in own.glob("jobs/*/resume.json")):
        shutil.rmtree(own, ignore_errors=True)


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Yields an event that the first Ctrl-C (or SIGTERM) sets; a second one ends the program at once."""
    stopped = threading.Event()

    def stop(*_: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bar:
    """The progress bar of one job."""

    def __init__(self, frames: int) -> None:
        self._frames, self._done = frames, 0
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"),
            console=console, transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("starting the engine", total=1.0, left="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: ClientEvent) -> None:
        """Shows what an event says."""
        if isinstance(event, ProgressEvent):
            stage = stage_in_words(event.stage)
            chunk = f" (chunk {event.chunk + 1} of {event.chunks})" if event.chunks > 1 else ""
            left = "" if event.eta_s is None else f"{_duration(event.eta_s)} left"
            self._progress.update(self._task, completed=event.fraction, description=f"{stage}{chunk}", left=left)
        elif isinstance(event, NoticeEvent):
            self._progress.console.print(f"Note: {event.message}", soft_wrap=True, highlight=False, markup=False)
        elif isinstance(event, ConnectionLost):
            self._progress.console.print(event.message, soft_wrap=True, highlight=False, markup=False)
        elif isinstance(event, Sending):
            sending = sending_in_words(event.received_bytes, event.size_bytes)
            self._progress.update(self._task, completed=event.received_bytes / event.size_bytes, description=sending)
        elif isinstance(event, StateEvent) and event.state == "queued":
            self._progress.update(self._task, completed=0.0, description="waiting for the engine")


# ---------------------------------------------------------------- the other commands


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("worldwarp_demo"),
    blender: Annotated[Path | None, typer.Option(help="Blender's executable, where `bpy` is not installed.")] = None,
    verbose: Verbose = False,
) -> None:
    """Try everything at once, on a scene that is built for it.

    A headless Blender builds a courtyard, and a server flies through it; all that they make is left in a folder.
    """
    from . import demo as demonstration

    demonstration.run(out, blender=blender)


@app.command()
def cameras(
    video: Annotated[Path | None, typer.Argument(help="A video of a still scene, filmed by a moving camera.")] = None,
    preset: Annotated[
        list[str] | None, typer.Option(help="A camera move such as DOLLY_IN, instead of a video; several add up.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The camera path to write.")] = Path("cameras.json"),
    frames: Annotated[
        int | None, typer.Option(help="Of a video: how many to look at (120); of a preset: its length (49).")
    ] = None,
    fov: Annotated[
        float | None,
        typer.Option(help="Horizontal field of view in degrees: of a video, where known; of a preset, 50."),
    ] = None,
    estimator: Annotated[str | None, typer.Option(help="Video: pycolmap (the default) or ttt3r.")] = None,
    scene_scale: Annotated[
        float | None, typer.Option(help="Video: median distance of what is seen first, in scene units (5).")
    ] = None,
    ttt3r: Annotated[
        Path | None, typer.Option(help="With --estimator ttt3r: your folder of it (not for commercial use).")
    ] = None,
    ttt3r_python: Annotated[str | None, typer.Option(help="The Python that TTT3R runs in (this one).")] = None,
    fps: Annotated[float | None, typer.Option(help="Preset: frames a second (24).")] = None,
    width: Annotated[int | None, typer.Option(help="Preset: width of the pictures in pixels (832).")] = None,
    height: Annotated[int | None, typer.Option(help="Preset: height of the pictures in pixels (480).")] = None,
    distance: Annotated[
        float | None, typer.Option(help="Preset: scene units to what the camera moves about or towards (5).")
    ] = None,
    amount: Annotated[float | None, typer.Option(help="Preset: times the move's usual length (1).")] = None,
    verbose: Verbose = False,
) -> None:
    """Make a camera path of named moves, or from a video."""
    for_video = {
        "--estimator": estimator, "--scene-scale": scene_scale, "--ttt3r": ttt3r, "--ttt3r-python": ttt3r_python,
    }  # fmt: skip
    for_presets = {"--fps": fps, "--width": width, "--height": height, "--distance": distance, "--amount": amount}
    if (video is None) == (not preset):
        got = "neither" if video is None else "both"
        raise BridgeError("bad_settings", f"Give one of: a video, or camera moves with --preset; got {got}.")
    stray = [name for name, value in (for_presets if preset is None else for_video).items() if value is not None]
    if stray:
        what = "a video" if preset is None else "--preset"
        raise BridgeError("bad_settings", f"{', '.join(stray)} cannot be used with {what}.")
    if video is not None:
        _cameras_of_video(
            video,
            out,
            frames=frames,
            estimator=estimator or "pycolmap",
            fov_deg=fov,
            scene_scale=5.0 if scene_scale is None else scene_scale,
            ttt3r=ttt3r,
            ttt3r_python=ttt3r_python,
        )
    else:
        if (width is None) != (height is None):
            raise BridgeError("bad_settings", "Give both --width and --height, or neither for 832x480.")
        given = {
            "frames": frames, "fps": fps, "width": width, "height": height, "fov_deg": fov, "distance": distance,
            "amount": amount,
        }  # fmt: skip
        _cameras_of_presets(preset or [], out, **{name: value for name, value in given.items() if value is not None})


def _cameras_of_presets(presets: list[str], out: Path, **settings: Any) -> None:
    from worldwarp_core.cameras.files import write_cameras
    from worldwarp_core.cameras.path import preset_path

    path = preset_path(presets, **settings)
    write_cameras(out, path)
    out_console.print(f"{len(path)} cameras of {path.width}x{path.height} in {out}", soft_wrap=True)


def _cameras_of_video(video: Path, out: Path, **settings: Any) -> None:
    from worldwarp_core.cameras.files import write_cameras
    from worldwarp_core.tracking.video import cameras_from_video

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("reading the video", total=1.0)
        found = cameras_from_video(
            video,
            progress=lambda what, share: progress.update(task, description=what, completed=share),
            **settings,
        )
    write_cameras(out, found.cameras)
    for notice in found.notices:
        console.print(f"Note: {notice.message}", soft_wrap=True, highlight=False, markup=False)
    out_console.print(f"{len(found.cameras)} cameras in {out} ({found.registered} of {found.sampled} frames placed)")


@app.command()
def jobs(server: Server = DEFAULT_ADDRESS, key: Key = None, verbose: Verbose = False) -> None:
    """List the jobs of a running server."""
    with _client(server, key) as client:
        client.connect()
        listed = client.list_jobs()
    table = Table("job", "state", "frames", "whose", "submitted", "why")
    # Whole, to be copied.
    table.columns[0].no_wrap, table.columns[0].min_width = True, 32
    for job in listed:
        submitted = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created_s))
        whose = job.client[:8] if len(job.client) == 32 else job.client
        done = f"{job.frames_done}/{job.frames}"
        table.add_row(job.job_id, job.state, done, escape(whose), submitted, escape(printable(job.message)))
    out_console.print(table if listed else f"No jobs at {server}.")


@app.command()
def doctor(verbose: Verbose = False) -> None:
    """Say what is installed here, and what is missing.

    For what is missing, with the command that brings it.
    """
    from .doctor import examine, report

    found = examine()
    out_console.print(report(found), soft_wrap=True)
    if any(check.state == "missing" for check in found):
        raise typer.Exit(1)


@app.command()
def logs(
    job: Annotated[str, typer.Option(help="Only of this job (its id, or the beginning of it).")] = "",
    log_id: Annotated[str, typer.Option("--id", help="Only this: the id that an error message named.")] = "",
    data_dir: Annotated[Path | None, typer.Option(help="Where the server keeps its jobs.")] = None,
    verbose: Verbose = False,
) -> None:
    """Show what a server on this machine has logged."""
    from .logs import read_logs
    from .store import default_data_dir

    folder = (data_dir or default_data_dir()) / "logs"
    found = False
    for record in read_logs(folder, job_id=job, log_id=log_id):
        found = True
        head = f"{record['time']} {record.get('process', '')} {record['level']}"
        out_console.print(f"{head} {record['message']}", soft_wrap=True, highlight=False, markup=False)
    if not found:
        raise BridgeError("no_logs", f"Nothing of the kind is logged in {folder}.")


def _client(address: str, key: Path | None = None, *, private: bool = False, compress: bool = False) -> Client:
    # Short: a server that runs answers at once, and someone is waiting for the sentence that says it does not. A
    # private server has just said that it is there, however long it takes to its first answer on a busy machine; one
    # that is gone does not come back.
    return Client(
        address,
        program="worldwarp-cli",
        connect_timeout_s=PRIVATE_CONNECT_TIMEOUT_S if private else 3.0,
        gone_timeout_s=PRIVATE_GONE_TIMEOUT_S if private else GONE_TIMEOUT_S,
        key=None if key is None else read_client_key(key),
        compress=compress,
    )


def _check_engine(name: str, factory: str) -> None:
    """Refuses an unknown name at once; the worker would only after it has loaded torch."""
    from worldwarp_core.spec import ENGINES

    if factory == DEFAULT_FACTORY and name not in ENGINES:
        raise BridgeError("unknown_engine", f"There is no engine called {name!r}. Choose: {', '.join(ENGINES)}.")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _say_error(message: str) -> None:
    # Without what a terminal would obey, and indented, so that no line of a peer's passes for one of ours.
    text = "\n       ".join(printable(line, 2000) for line in message.splitlines() if line.strip())
    console.print(f"Error: {text}", soft_wrap=True, highlight=False, markup=False, style="red")


cli_models.register(app)
cli_first_frame.register(app)
cli_train.register(app)
cli_eval.register(app)

if __name__ == "__main__":
    main()
