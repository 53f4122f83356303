"""A tour of the add-on in a real window, as an artist would take it; makes the manual's pictures. Runs inside Blender.

    worldwarp demo --out demo                                      makes a scene: demo/scene.blend
    worldwarp serve --engine cache
    blender --factory-startup --window-geometry 0 0 1280 800 --python tests/blender_addon/tour.py -- \
        --zip dist/worldwarp-0.1.0-linux_x64.zip --scene demo/scene.blend --out tour

Needs a window of that size, but nobody at it; Blender ends when it is done, with 0 if all was as it should be. What was
looked at is in OUT/tour.json, sentence by sentence. `--screenshot "scrot -o"` takes the pictures with another program,
where Blender's own come out black (some virtual screens). Pictures are WebP. The manual's are of the engine `cache`;
with `preview` the tour takes longer without a GPU, and looks too at the strength that the server tells.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix, Vector

PACKAGE = "bl_ext.user_default.worldwarp"
TIMEOUT_S = 900.0


def main() -> None:
    """Reads the options and begins; the rest happens in Blender's own timers."""
    parser = argparse.ArgumentParser(prog="tour.py")
    parser.add_argument("--zip", type=Path, required=True, help="the extension to install")
    parser.add_argument("--scene", type=Path, required=True, help="a .blend with an animated camera, and no shot yet")
    parser.add_argument("--server", default="tcp://127.0.0.1:5577")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the pictures, the .blend and the report")
    parser.add_argument("--screenshot", default="", help="program that takes a picture of the screen, given the file")
    options = parser.parse_args(sys.argv[sys.argv.index("--") + 1 :])
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    visit = Visit(options)
    steps = tour(visit)

    def step() -> float | None:
        try:
            return next(steps)
        except StopIteration:
            pass
        except Exception:
            visit.check("the tour came to its end", False, traceback.format_exc())
        visit.end()
        return None

    bpy.app.timers.register(step, first_interval=3.0, persistent=True)


class Visit:
    """What a tour has at hand, and what it has found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.found: list[dict[str, Any]] = []

    def check(self, sentence: str, holds: object, detail: object = "") -> None:
        """Notes whether a sentence about the add-on holds."""
        self.found.append({"holds": bool(holds), "sentence": sentence, "detail": str(detail)})
        print(f"{'holds ' if holds else 'FAILS '} {sentence} {detail}", flush=True)

    def picture(self, name: str) -> None:
        """Takes a picture of the window, and keeps it."""
        self.shrink(self.screen(name))

    def screen(self, name: str) -> Path:
        """Takes a picture of the window as it was last drawn; returns its file."""
        file = self.options.out / f"{name}.png"
        if self.options.screenshot:
            subprocess.run([*shlex.split(self.options.screenshot), str(file)], check=True)
        else:
            with self.viewport():
                bpy.ops.screen.screenshot(filepath=str(file))
        return file

    def shrink(self, file: Path) -> None:
        """Keeps a PNG as WebP: a tenth of the size."""
        picture = pixels(file)
        height, width = picture.shape[:2]
        # One that was loaded would be copied as it is.
        image = bpy.data.images.new("picture", width, height)
        image.pixels.foreach_set(np.dstack([picture, np.ones((height, width), np.float32)]).ravel())
        image.file_format = "WEBP"
        image.save(filepath=str(file.with_suffix(".webp")), quality=80)
        bpy.data.images.remove(image)
        file.unlink()

    def look(self, perspective: str) -> None:
        """Looks through the camera ("CAMERA"), or at the world from beside it ("PERSP")."""
        self.area().spaces.active.region_3d.view_perspective = perspective
        with self.viewport():
            if perspective == "CAMERA":
                bpy.ops.view3d.view_center_camera()
            else:
                bpy.ops.view3d.view_orbit(angle=0.35, type="ORBITLEFT")
                bpy.ops.view3d.view_orbit(angle=0.15, type="ORBITUP")

    def scroll(self, steps: int) -> None:
        """Scrolls the sidebar down by so many turns of the wheel, or up where negative."""
        area = self.area()
        sidebar = next(region for region in area.regions if region.type == "UI")
        with bpy.context.temp_override(window=self.window(), area=area, region=sidebar):
            for _ in range(abs(steps)):
                (bpy.ops.view2d.scroll_down if steps > 0 else bpy.ops.view2d.scroll_up)()

    def viewport(self) -> Any:
        """The 3D viewport, as the context of what follows."""
        window, area = self.window(), self.area()
        region = next(region for region in area.regions if region.type == "WINDOW")
        return bpy.context.temp_override(window=window, area=area, region=region)

    def press(self, operator: str, **settings: Any) -> set[str]:
        """Presses a button in the viewport, as the mouse would."""
        with self.viewport():
            group, name = operator.split(".")
            return getattr(getattr(bpy.ops, group), name)("INVOKE_DEFAULT", **settings)

    def window(self) -> bpy.types.Window:
        return bpy.context.window_manager.windows[0]

    def area(self, kind: str = "VIEW_3D") -> bpy.types.Area:
        return next(area for area in self.window().screen.areas if area.type == kind)

    def end(self) -> None:
        """Writes the report and leaves Blender."""
        (self.options.out / "tour.json").write_text(
            json.dumps({"blender": bpy.app.version_string, "found": self.found}, indent=2) + "\n"
        )
        # Not by quitting, which asks whether to save.
        sys.stdout.flush()
        os._exit(0 if all(one["holds"] for one in self.found) else 1)


def tour(visit: Visit) -> Iterator[float]:
    """Goes from one station to the next, yielding the seconds to wait: Blender draws only in between."""
    yield from install(visit)
    yield from open_scene(visit)
    yield from connect(visit)
    yield from choose_strength(visit)
    yield from check_path(visit)
    yield from generate(visit)
    yield from look_at_results(visit)
    yield from make_another_take(visit)
    yield from put_an_object_in(visit)
    yield from undo_an_import(visit)
    yield from save_move_and_reopen(visit)


def waiting(done: Callable[[], object], what: str) -> Iterator[float]:
    """Waits until something is so."""
    began = time.monotonic()
    while not done():
        if time.monotonic() - began > TIMEOUT_S:
            raise TimeoutError(f"{what}: not in {TIMEOUT_S:.0f} s")
        yield 0.2


# ---------------------------------------------------------------- stations


def install(visit: Visit) -> Iterator[float]:
    """From the zip, as by dropping it into the window."""
    bpy.context.preferences.view.show_splash = False
    bpy.context.preferences.view.smooth_view = 0
    done = bpy.ops.extensions.package_install_files(
        filepath=str(visit.options.zip.resolve()), repo="user_default", enable_on_install=True
    )
    visit.check("the zip installs", done == {"FINISHED"} and PACKAGE in bpy.context.preferences.addons)
    bpy.context.preferences.addons[PACKAGE].preferences.address = visit.options.server
    yield 1.0


def open_scene(visit: Visit) -> Iterator[float]:
    """A scene with a camera that flies; a copy, which the tour may save."""
    copy = visit.options.out / "shot.blend"
    shutil.copyfile(visit.options.scene, copy)
    bpy.ops.wm.open_mainfile(filepath=str(copy))
    yield 2.0
    with visit.viewport():
        bpy.ops.screen.screen_full_area()
    yield 1.0
    visit.area().spaces.active.show_region_ui = True
    visit.look("CAMERA")
    yield 1.0
    show_tab(visit)
    yield 1.5
    visit.picture("panel")


def show_tab(visit: Visit) -> None:
    """Turns the sidebar to the add-on's tab; it must have been drawn once."""
    sidebar = next(region for region in visit.area().regions if region.type == "UI")
    sidebar.active_panel_category = "WorldWarp"
    visit.area().tag_redraw()


def connect(visit: Visit) -> Iterator[float]:
    """Test Connection."""
    facts = import_module(f"{PACKAGE}.server_facts")
    visit.press("worldwarp.test_connection")
    yield from waiting(lambda: facts.known().facts or facts.known().error, "the server's answer")
    visit.check("the server answers", facts.known().facts, facts.known().error)
    yield 0.5


def choose_strength(visit: Visit) -> Iterator[float]:
    """The strength is the server's until it is ticked, and begins where the server has it."""
    group, facts = bpy.context.scene.worldwarp, import_module(f"{PACKAGE}.server_facts").known().facts
    if facts is None or facts.strength is None:
        visit.check("the panel leaves the strength to the server", group.server_strength == "Server's choice")
        return
    told = f"Server's: {facts.strength:.2f}"
    visit.check("the panel says what strength the server takes", group.server_strength == told, group.server_strength)
    yield 0.5
    visit.picture("strength")
    group.own_strength = True
    visit.check("a strength of one's own begins there", abs(group.strength - facts.strength) < 1e-3, group.strength)
    group.own_strength = False


def check_path(visit: Visit) -> Iterator[float]:
    """Check Path: findings in the panel, the path in the viewport."""
    overlay = import_module(f"{PACKAGE}.path_overlay")
    visit.press("worldwarp.preflight")
    yield 0.5
    visit.check("the path was checked and nothing forbids it", overlay.report() and not overlay.report().errors)
    visit.look("PERSP")
    # Twice: the sidebar lays the findings out anew after it has drawn them once.
    for _ in range(2):
        visit.area().tag_redraw()
        yield 1.0
    visit.picture("preflight")
    visit.look("CAMERA")


def generate(visit: Visit) -> Iterator[float]:
    """Generate, watching frames come, and the world grow in the live view."""
    session = import_module(f"{PACKAGE}.session")
    live_view = import_module(f"{PACKAGE}.live_view")
    bpy.context.scene.worldwarp.prompt = "a sunlit courtyard with a fountain"
    visit.press("worldwarp.generate")
    yield from waiting(lambda: session.status().frames_done > 12 or not session.status().running, "the first frames")
    visit.scroll(40)
    yield 2.0
    visit.picture("watching")
    visit.look("PERSP")
    yield 1.0
    if session.status().running:
        visit.press("worldwarp.live_view")
        yield from waiting(lambda: live_view._live.texture or not session.status().running, "the live view")
        visit.check("the live view shows the world while it is made", live_view._live.texture)
        yield 3.0
        visit.picture("live_view")
        visit.press("worldwarp.live_view")
    visit.look("CAMERA")
    yield from waiting(lambda: not session.status().running, "the shot")
    yield 2.0
    status = session.status()
    visit.check("the shot came whole", status.frames_done == status.frames > 1, f"{status.outcome} {status.error}")


def look_at_results(visit: Visit) -> Iterator[float]:
    """The last frames in the camera, the world from elsewhere."""
    scene = bpy.context.scene
    scene.frame_set((scene.frame_start + 2 * scene.frame_end) // 3)
    visit.scroll(40)
    yield 2.0
    visit.picture("in_the_camera")
    visit.look("PERSP")
    is_splat_object = import_module(f"{PACKAGE}.splats").is_splat_object
    for thing in scene.objects:
        thing.hide_set(thing.type == "MESH" and not is_splat_object(thing))
    yield 3.0
    visit.picture("splats")
    yield from look_at_colours(visit)
    for thing in scene.objects:
        thing.hide_set(False)
    visit.look("CAMERA")


def look_at_colours(visit: Visit) -> Iterator[float]:
    """Through the camera, on the first frame, splats look as that frame does."""
    scene = bpy.context.scene
    scene.frame_set(scene.frame_start)
    scene.camera.data.show_background_images = False
    visit.look("CAMERA")
    yield 3.0
    seen = pixels(visit.screen("colours"))
    frame = pixels(
        next((Path(bpy.path.abspath(scene.worldwarp.shown_take)) / "frames").glob(f"*{scene.frame_current:04d}.png"))
    )
    seen, frame = (
        picture[
            int(0.4 * len(picture)) : int(0.6 * len(picture)), int(0.3 * picture.shape[1]) : int(0.7 * picture.shape[1])
        ]
        for picture in (seen, frame)
    )
    off = abs(seen.mean(axis=(0, 1)) - frame.mean(axis=(0, 1))).max()
    visit.check("splats have the colours of the frames", off < 0.06, f"{off:.3f} off")
    scene.camera.data.show_background_images = True


def make_another_take(visit: Visit) -> Iterator[float]:
    """The last frames once more with another seed, and back to how they were."""
    scene, session = bpy.context.scene, import_module(f"{PACKAGE}.session")
    first = scene.worldwarp.shown_take
    scene.worldwarp.seed += 1
    scene.frame_set(scene.frame_end - 4)
    # As its dialog would, whose values are these.
    with visit.viewport():
        bpy.ops.worldwarp.regenerate(frame=scene.frame_current)
    yield 0.5
    yield from waiting(lambda: not session.status().running, "the second take")
    visit.check("a take goes on from a frame", len(scene.worldwarp.takes) == 2, session.status().error)
    visit.check("and is shown", scene.worldwarp.shown_take != first)
    visit.press("worldwarp.flip_takes")
    visit.check("a flip shows the earlier one", scene.worldwarp.shown_take == first)
    yield 1.0
    visit.picture("takes")


def put_an_object_in(visit: Visit) -> Iterator[float]:
    """An object of the scene's own, rendered into a generated frame."""
    scene = bpy.context.scene
    for thing in scene.objects:
        thing.hide_render = thing.type == "MESH"
    scene.frame_set((scene.frame_start + scene.frame_end) // 2)
    camera = scene.camera.matrix_world
    with visit.viewport():
        bpy.ops.mesh.primitive_monkey_add(size=1.2, location=camera @ Vector((0.6, -0.5, -6.5)))
    monkey = bpy.context.object
    # Upright in the picture, and facing the camera.
    monkey.rotation_euler = (camera @ Matrix.Rotation(-math.pi / 2, 4, "X")).to_euler()
    monkey.data.materials.append(bpy.data.materials.new("Clay"))
    monkey.data.materials[0].use_nodes = True
    monkey.data.materials[0].node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value = (
        0.02,
        0.05,
        0.12,
        1,
    )
    monkey.modifiers.new("Smooth", "SUBSURF").render_levels = 2
    scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 64, False
    visit.press("worldwarp.composite")
    file = visit.options.out / "composite.png"
    scene.render.filepath = str(file)
    scene.render.image_settings.file_format = "PNG"
    scene.view_settings.view_transform = "Standard"
    bpy.ops.render.render(write_still=True)
    frame = next(
        (Path(bpy.path.abspath(scene.worldwarp.shown_take)) / "frames").glob(f"*{scene.frame_current:04d}.png")
    )
    with_object, without = (pixels(one) for one in (file, frame))
    change = abs(with_object - without).max(axis=-1)
    visit.check("an object stands in the frame", (change > 0.2).mean() > 0.01, f"{(change > 0.2).mean():.3f}")
    visit.check("the rest is the frame", (change < 0.02).mean() > 0.5, f"{(change < 0.02).mean():.3f}")
    visit.shrink(file)
    bpy.ops.worldwarp.composite(enable=False)
    yield 1.0


def pixels(file: Path) -> Any:
    """Returns (H, W, 3) in [0, 1] of a picture, as it is stored."""
    image = bpy.data.images.load(str(file))
    width, height = image.size
    values = np.empty(width * height * image.channels, np.float32)
    image.pixels.foreach_get(values)
    bpy.data.images.remove(image)
    return values.reshape(height, width, -1)[..., :3]


def undo_an_import(visit: Visit) -> Iterator[float]:
    """Undo takes back exactly what an import brought."""
    splats = next(visit.options.out.rglob("splats.ply"))
    bpy.ops.ed.undo_push(message="before")
    before = names()
    with visit.viewport():
        bpy.ops.worldwarp.import_splats(filepath=str(splats))
        bpy.ops.ed.undo_push(message="Import Splats")
    yield 1.0
    after = names()
    with visit.viewport():
        bpy.ops.ed.undo()
    yield 1.0
    visit.check("an import brings something", after != before)
    visit.check("undo takes exactly that away", names() == before, sorted(set(names()) ^ set(before)))


def names() -> list[str]:
    """Returns the names of all that a file holds of the kinds that the add-on makes."""
    kinds = ("objects", "meshes", "pointclouds", "images", "materials", "node_groups", "collections", "cameras")
    return sorted(f"{kind}/{thing.name}" for kind in kinds for thing in getattr(bpy.data, kind, ()))


def save_move_and_reopen(visit: Visit) -> Iterator[float]:
    """A file that was saved, moved together with its folder and opened again finds its pictures."""
    bpy.ops.wm.save_mainfile()
    moved = visit.options.out / "moved"
    shutil.rmtree(moved, ignore_errors=True)
    moved.mkdir()
    shutil.move(visit.options.out / "shot.blend", moved / "shot.blend")
    shutil.move(visit.options.out / "worldwarp", moved / "worldwarp")
    bpy.ops.wm.open_mainfile(filepath=str(moved / "shot.blend"))
    yield 2.0
    camera = bpy.context.scene.camera.data
    files = [bpy.path.abspath(background.image.filepath) for background in camera.background_images]
    found = [Path(file).is_file() and moved in Path(file).parents for file in files]
    visit.check("a moved file finds the frames behind its camera", files and all(found), files)
    visit.check("and its takes", len(bpy.context.scene.worldwarp.takes) > 0)


if __name__ == "__main__":
    main()
