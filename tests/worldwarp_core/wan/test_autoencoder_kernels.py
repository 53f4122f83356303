"""The autoencoder's CUDA kernels against their plain twins, at a width where both kinds of convolution occur."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from worldwarp_core.wan import streaming

pytest.importorskip("triton", reason="torch brings Triton only where it brings CUDA")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels need a CUDA device")

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest deviation over the standard deviation: some steps of the type's own rounding after a dozen layers."""


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=64, z_dim=16, num_res_blocks=1).eval().requires_grad_(False).cuda()
    for name, parameter in vae.named_parameters():
        if name.endswith(("gamma", "bias")):
            parameter.data += 0.2 * torch.randn_like(parameter)
    streaming.to_channels_last(vae)
    return vae


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("step", [streaming.encode_step, streaming.decode_step])
def test_fused_steps_equal_plain_ones(vae, step, dtype):
    """Over three steps, the memory handed on by each to itself: a mistake there would show in the next."""
    generator = torch.Generator("cuda").manual_seed(1)
    channels, frames, side = (3, 4, 72) if step is streaming.encode_step else (16, 1, 9)
    model = vae.to(dtype)

    def clip(length):
        x = torch.randn(1, channels, length, side, side + 8, generator=generator, device="cuda", dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last_3d)

    memory = fused_memory = None
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for x in (clip(1), clip(frames), clip(3 * frames)):
            plain, memory = step(model, x, memory)
            fused, fused_memory = step(model, x, fused_memory, True)
            torch.testing.assert_close(fused, plain, atol=TOLERANCE[dtype] * float(plain.std()), rtol=0)
            # Channels that are not last would be moved there and back at every convolution after.
            assert all(m.is_contiguous(memory_format=torch.channels_last_3d) for m in fused_memory)
