"""The blocks that are trained give the answers and gradients of those that run."""

import torch

from worldwarp_core.preview.transformer import CONFIG, make_transformer, no_text
from worldwarp_core.training.levels import make_trainable

TINY = CONFIG | {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "num_layers": 2}


def test_answers_and_gradients_are_those_of_the_plain_blocks():
    torch.manual_seed(0)
    plain = make_transformer(TINY)
    trained = make_trainable(make_transformer(TINY, state=plain.state_dict()))
    assert type(trained.blocks[0]) is not type(plain.blocks[0])
    latents = torch.randn(2, 16, 3, 4, 6)
    levels = torch.tensor([1000.0, 900.0, 400.0, 0.0])
    index = torch.randint(0, 4, (2, 18))
    one, other = (model(latents, levels, index, no_text(2)) for model in (plain, trained))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    one.square().mean().backward()
    other.square().mean().backward()
    for (name, p), q in zip(plain.named_parameters(), trained.parameters(), strict=True):
        if p.grad is None:
            assert q.grad is None, name
        else:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-3, msg=name)
