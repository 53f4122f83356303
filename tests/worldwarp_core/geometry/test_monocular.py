"""Depth models of transformers: tiny random ones of the real classes, saved in the real layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTImageProcessor,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessor,
    ViTConfig,
)

from tests.support.fake_hub import fake_hub, use_hub
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.geometry.complete import complete_depth
from worldwarp_core.geometry.monocular import MAX_DEPTH, MonocularDepth, output_kind
from worldwarp_core.geometry.start import start_depth
from worldwarp_core.model_files.download import download
from worldwarp_core.model_files.store import hub_name


def save_depth_anything(folder: Path, kind: str = "relative", *, safetensors: bool = True) -> Path:
    """The layout of depth-anything/Depth-Anything-V2-Small-hf, a thousandth of its size."""
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        patch_size=14,
        image_size=70,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=24,
        patch_size=14,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=80 if kind == "metric" else 1,
    )
    model = DepthAnythingForDepthEstimation(config)
    torch.nn.init.constant_(model.head.conv3.bias, 2.0)  # so that the final ReLU lets the random output through
    if safetensors:
        model.save_pretrained(folder)
    else:
        folder.mkdir(exist_ok=True)
        config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    DPTImageProcessor(
        size={"height": 70, "width": 70},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        do_resize=True,
        do_normalize=True,
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "expected"), [("relative", "disparity"), ("metric", "depth")])
def test_depth_anything_loads_from_a_folder_and_says_what_its_output_means(
    tmp_path: Path, kind: str, expected: str
) -> None:
    model = MonocularDepth.load(str(save_depth_anything(tmp_path, kind)))
    assert model.kind == expected
    assert model.name == str(tmp_path)
    rgb = torch.rand(2, 45, 80, 3, generator=torch.Generator().manual_seed(1))
    values = model.estimate(rgb)
    assert values.shape == (2, 45, 80)
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert values.std() > 0
    assert not values.requires_grad
    torch.testing.assert_close(model.estimate(rgb[1:])[0], values[1])  # a frame's depth does not depend on its batch
    disparity = model.disparity(rgb)
    if expected == "depth":
        torch.testing.assert_close(disparity, torch.where((values > 0) & (values < MAX_DEPTH), 1 / values, 0))
    else:
        torch.testing.assert_close(disparity, values)


def test_a_model_whose_processor_has_no_way_back_to_the_image_size_is_resized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GLPNConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    )
    GLPNForDepthEstimation(config).save_pretrained(tmp_path)
    GLPNImageProcessor().save_pretrained(tmp_path)
    model = MonocularDepth.load(str(tmp_path))
    assert model.kind == "depth"
    assert model.estimate(torch.rand(1, 50, 90, 3)).shape == (1, 50, 90)


def test_a_loaded_model_serves_start_and_history_frames(tmp_path: Path) -> None:
    model = MonocularDepth.load(str(save_depth_anything(tmp_path)))
    rgb = torch.rand(40, 64, 3, generator=torch.Generator().manual_seed(1))
    depth, source = start_depth(None, rgb, model, 2.0)
    assert float(depth.median()) == pytest.approx(2.0, rel=1e-4)
    assert str(tmp_path) in source
    seen = torch.ones(1, 40, 64, dtype=torch.bool)
    seen[:, :, 50:] = False
    completed = complete_depth(depth[None], seen, rgb[None], model)
    torch.testing.assert_close(completed.depth[0], depth, rtol=0.02, atol=0)  # the same model agrees with itself


def test_midas_is_relative_and_dpt_on_dinov2_is_metric() -> None:
    assert output_kind(DPTConfig(backbone_config=ViTConfig()), "a") == "disparity"
    assert output_kind(DPTConfig(backbone_config=Dinov2Config(), is_hybrid=False), "b") == "depth"


def test_a_model_that_is_not_there_names_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    name = "depth-anything/no-such-model"
    with pytest.raises(WorldWarpError, match=f"worldwarp models download {name}") as caught:
        MonocularDepth.load(name)
    assert caught.value.code == "no_weights"
    with pytest.raises(WorldWarpError, match="no depth model at") as caught:
        MonocularDepth.load(str(tmp_path / "none"))
    assert caught.value.code == "no_weights"


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = save_depth_anything(tmp_path, safetensors=False)
    with pytest.raises(WorldWarpError, match=r"no complete depth model.*safetensors") as caught:
        MonocularDepth.load(str(folder))
    assert caught.value.code == "no_weights"


def test_a_model_of_another_kind_is_refused_by_its_type(tmp_path: Path) -> None:
    ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(WorldWarpError, match="vit") as caught:
        MonocularDepth.load(str(tmp_path))
    assert caught.value.code == "bad_depth_model"


def test_a_folder_that_is_no_model_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WorldWarpError) as caught:
        MonocularDepth.load(str(tmp_path))
    assert caught.value.code == "bad_depth_model"
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(WorldWarpError):
        MonocularDepth.load(str(tmp_path))


def test_a_short_name_is_fetched_by_the_command_it_names_and_found_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = hub_name("depth-anything-small")
    assert known is not None
    (tmp_path / "published").mkdir()
    with fake_hub({known.repo: save_depth_anything(tmp_path / "published")}) as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "hf")
        download(known)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert MonocularDepth.load("depth-anything-small").kind == "disparity"
