"""Runs the tracing kernels by Triton's interpreter: `TRITON_INTERPRET=1 python trace_interpreted.py CASE RESULT`."""

import sys

import torch

from worldwarp_core.training import worlds_triton

case = torch.load(sys.argv[1], weights_only=True)
time, which = worlds_triton.first_hit(case["origin"], case["direction"], case["table"])
ground = worlds_triton.march(
    case["heights"], case["which"], case["rolling"], case["origin"], case["direction"], *case["march"]
)
away = worlds_triton.distance(case["origin"], case["table"])
seen = worlds_triton.sample(case["texels"], case["size"], case["picture"], case["uv"], case["level"])
torch.save({"seen": seen, "time": time, "which": which, "ground": ground, "away": away}, sys.argv[2])
