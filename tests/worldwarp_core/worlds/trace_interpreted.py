"""Runs the tracing kernels by Triton's interpreter: `TRITON_INTERPRET=1 python trace_interpreted.py CASE RESULT`."""

import sys

import torch

from worldwarp_core.worlds import trace_triton

case = torch.load(sys.argv[1], weights_only=True)
time, which = trace_triton.first_hit(case["origin"], case["direction"], case["table"])
ground = trace_triton.march(
    case["heights"], case["which"], case["rolling"], case["origin"], case["direction"], *case["march"]
)
away = trace_triton.distance(case["origin"], case["table"])
seen = trace_triton.sample(case["texels"], case["size"], case["picture"], case["uv"], case["level"])
torch.save({"seen": seen, "time": time, "which": which, "ground": ground, "away": away}, sys.argv[2])
