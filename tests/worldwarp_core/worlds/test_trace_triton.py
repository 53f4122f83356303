"""The CUDA kernels, by Triton's interpreter, answer as the plain functions do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worldwarp_core.worlds.layout import CAPACITY
from worldwarp_core.worlds.render import (
    EXTENT,
    FARTHEST,
    HALVINGS,
    MARCH_STEPS,
    NEAREST,
    build_worlds,
    ground_time,
)
from worldwarp_core.worlds.textures import build_bank
from worldwarp_core.worlds.trace import distance_plainly, first_hit_plainly

ROOT = Path(__file__).parents[3]


def test_the_kernels_find_what_the_plain_functions_find(tmp_path):
    pytest.importorskip("triton")
    bank = build_bank("test", size=16, patterns_each=1)
    kinds = ["rooms", "colonnade", "terrain"]  # together every shape, arches, and hills
    worlds = build_worlds([3, 3, 3], bank, kinds=kinds)
    worlds.table[:, 14 : CAPACITY["box"], 2] = -1e5  # the interpreter is slow: the first boxes will do
    generator = torch.Generator().manual_seed(0)
    place = worlds.places.repeat_interleave(20, 1)  # more rays than a block, not a whole number of blocks
    origin = place[..., :3] + place[..., 3:] * (2 * torch.rand(place[..., 3:].shape, generator=generator) - 1)
    direction = torch.randn(origin.shape, generator=generator)
    which = torch.arange(len(kinds))
    growth = (FARTHEST / NEAREST) ** (1 / (MARCH_STEPS - 1))
    picture = torch.randint(len(bank), (3, 100), generator=generator)
    uv = 6 * torch.rand(3, 100, 2, generator=generator) - 3
    level = 9 * torch.rand(3, 100, generator=generator) - 2
    torch.save(
        {
            "texels": bank.texels, "size": bank.size, "picture": picture, "uv": uv, "level": level,
            "origin": origin, "direction": direction, "table": worlds.table, "heights": worlds.heights,
            "which": which, "rolling": worlds.rolling, "march": (EXTENT, NEAREST, growth, MARCH_STEPS, HALVINGS),
        },
        tmp_path / "case.pt",
    )  # fmt: skip
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("trace_interpreted.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "case.pt", tmp_path / "result.pt"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    got = torch.load(tmp_path / "result.pt", weights_only=True)

    time, index = first_hit_plainly(origin, direction, worlds.table)
    hit = time.isfinite()
    assert hit.float().mean() > 0.3
    assert (got["time"].isfinite() == hit).float().mean() > 0.998  # a ray along an edge may fall on either side
    both = hit & got["time"].isfinite()
    close = ((got["time"] - time).abs() < 1e-3 + 1e-3 * time) | ~both
    assert close.float().mean() > 0.998
    assert (got["which"] == index)[both].float().mean() > 0.99  # faces that coincide have either name
    # every shape was met
    assert len({int(name) for name in torch.bucketize(index[hit], torch.tensor([111, 127, 155])).unique()}) == 4

    torch.testing.assert_close(got["away"], distance_plainly(origin, worlds.table), atol=1e-4, rtol=1e-4)

    ground = ground_time(worlds, which, origin, direction)
    assert 0.02 < ground.isfinite().float().mean() < 0.5
    assert (got["ground"].isfinite() == ground.isfinite()).float().mean() > 0.998
    both = ground.isfinite() & got["ground"].isfinite()
    assert ((got["ground"] - ground).abs()[both] < 2e-3 + 1e-3 * ground[both]).float().mean() > 0.99

    torch.testing.assert_close(got["seen"], bank.sample(picture, uv, level), atol=1e-4, rtol=0)


SIGNATURES = {
    "_trace": (
        "origin *fp32, direction *fp32, table *fp32, counts *i32, time *fp32, which *i64, rays i32, primitives i32"
    ),
    "_distance": "points *fp32, table *fp32, counts *i32, away *fp32, count i32, primitives i32",
    "_march": (
        "heights *fp32, which *i64, hilly *i32, origin *fp32, direction *fp32, time *fp32, rays i32, cells i32, "
        "extent fp32, first fp32, growth fp32, steps i32, halvings i32"
    ),
    "_sample": "texels *i32, picture *i64, uv *fp32, level *fp32, colours *fp32, count i32, size i32, last i32",
}


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_kernel_compiles_for_a_gpu_without_one(name):
    """The interpreter forgives what the compiler does not."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from worldwarp_core.worlds import trace_triton

    arguments = dict(one.split() for one in SIGNATURES[name].split(", ")) | {"BLOCK": "constexpr"}
    source = ASTSource(getattr(trace_triton, name), arguments, {"BLOCK": trace_triton.BLOCK})
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert len(made.asm["cubin"]) > 1000
