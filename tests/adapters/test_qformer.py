"""Q-Formers: one for each frame, and Video-LLaMA's for all of them, equal to one written out on BERT's layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertAttention, BertIntermediate, BertOutput

from mmsft.adapters import AudioQFormer, QFormer, VideoQFormer, adapter_spec
from mmsft.adapters.query_transformer import Queries, QueryTransformer
from mmsft.adapters.spec import Slots
from mmsft.errors import DataError
from mmsft.modalities.spec import Features
from mmsft.types import Grid

TOLERANCE = 5e-6
"""fp32: the same products, summed in another order; values are of unit scale (LayerNorm)."""
SMALL: dict[str, Any] = {"queries": 3, "heads": 2, "width": 8, "inner": 16}
FRAME = {**SMALL, "queries": 5, "layers": 2}


class Written(nn.Module):
    """A Q-Former of the paper's words: BERT's layers, each with cross-attention by torch, and no text."""

    def __init__(self, ours: QueryTransformer, width_in: int, cross_every: int) -> None:
        super().__init__()
        config = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16)
        self.ours, self.cross_every = ours, cross_every
        self.norm = nn.LayerNorm(8, eps=1e-12)
        self.norm.load_state_dict(ours.qformer.layernorm.state_dict())
        self.layers: Any = nn.ModuleList()
        for layer in ours.qformer.encoder.layer:
            attention, intermediate, out = BertAttention(config), BertIntermediate(config), BertOutput(config)
            attention.self.load_state_dict(layer.attention.attention.state_dict())
            attention.output.load_state_dict(layer.attention.output.state_dict())
            intermediate.load_state_dict(layer.intermediate_query.state_dict())
            out.load_state_dict(layer.output_query.state_dict())
            parts = [attention, intermediate, out]
            if layer.has_cross_attention:
                parts.append(self._crossing(layer.crossattention, width_in))
            self.layers.append(nn.ModuleList(parts))

    def _crossing(self, theirs: Any, width_in: int) -> nn.ModuleList:
        cross: Any = nn.MultiheadAttention(8, 2, kdim=width_in, vdim=width_in, batch_first=True)
        one = theirs.attention
        cross.q_proj_weight = one.query.weight
        cross.k_proj_weight, cross.v_proj_weight = one.key.weight, one.value.weight
        cross.in_proj_weight = None
        cross._qkv_same_embed_dim = False
        cross.in_proj_bias = nn.Parameter(torch.cat([one.query.bias, one.key.bias, one.value.bias]))
        cross.out_proj.load_state_dict(theirs.output.dense.state_dict())
        norm = nn.LayerNorm(8, eps=1e-12)
        norm.load_state_dict(theirs.output.LayerNorm.state_dict())
        return nn.ModuleList([cross, norm])

    def forward(self, x_NLD: Tensor) -> Tensor:
        h: Tensor = self.norm(self.ours.queries.expand(len(x_NLD), -1, -1))
        for number, (attention, intermediate, out, *crossing) in enumerate(self.layers):
            h = attention(h)[0]
            assert bool(crossing) == (number % self.cross_every == 0)
            for cross, norm in crossing:
                h = norm(h + cross(h, x_NLD, x_NLD, need_weights=False)[0])
            h = out(intermediate(h), h)
        return h


def drawn(module: nn.Module) -> Any:
    """Draws all weights anew, so that norms and biases count."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize(("layers", "cross_every"), [(2, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("width", [8, 20])
def test_it_is_a_bert_whose_queries_attend_to_the_features(layers: int, cross_every: int, width: int) -> None:
    ours = drawn(QueryTransformer(Queries(**SMALL, layers=layers, cross_every=cross_every), width))
    features = torch.randn(2, 7, width)
    expected = Written(ours, width, cross_every).eval()(features)
    torch.testing.assert_close(ours(features), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_the_audio_branch_is_positions_of_clips_a_qformer_and_a_linear_layer() -> None:
    grid = Grid(4, 1, 1)
    module = drawn(AudioQFormer(**SMALL, frames=6).build(10, 16))
    clips = torch.randn(2, 4, 10)
    queries = Written(module.transformer, 10, 1).eval()(clips + module.positions.weight[:4])
    linear = module.projection.layers
    expected = queries @ linear.weight.T + linear.bias
    torch.testing.assert_close(module(Features(clips), grid), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_the_video_branch_is_a_qformer_for_each_frame_positions_and_a_qformer_for_all() -> None:
    grid = Grid(3, 2, 2)
    spec = adapter_spec({"kind": "video_qformer", **SMALL, "frame": FRAME, "frames": 4}).value
    module = drawn(spec.build(10, 16))
    frames = torch.randn(2, 3, 4, 10)
    each = Written(module.frame, 10, 2).eval()
    seen = [each(frames[:, t]) + module.video.positions.weight[t] for t in range(3)]
    queries = Written(module.video.transformer, 8, 1).eval()(torch.cat(seen, dim=1))
    linear = module.video.projection.layers
    expected = queries @ linear.weight.T + linear.bias
    torch.testing.assert_close(module(Features(frames.flatten(1, 2)), grid), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("positions", [True, False])
def test_the_order_of_frames_counts_by_their_positions_alone(positions: bool) -> None:
    module = drawn(VideoQFormer(**SMALL, frame=None).build(10, 16))
    if not positions:
        nn.init.zeros_(module.video.positions.weight)
    features, grid = torch.randn(1, 3, 10), Grid(3, 1, 1)
    apart = (module(Features(features), grid) - module(Features(features[:, [1, 0, 2]]), grid)).abs().max()
    assert (apart > 1e-3) == positions


@torch.no_grad()
def test_each_frame_becomes_the_tokens_that_it_becomes_alone() -> None:
    module = drawn(QFormer(**SMALL, layers=2).build(10, 16))
    features = torch.randn(2, 12, 10)
    whole = module(Features(features), Grid(3, 2, 2))
    alone = [module(Features(features[:, 4 * t : 4 * t + 4]), Grid(1, 2, 2)) for t in range(3)]
    torch.testing.assert_close(whole, torch.cat(alone, dim=1), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("settings", "slots"),
    [
        ({"kind": "qformer", **SMALL, "layers": 1}, 9),
        ({"kind": "qformer", **SMALL, "layers": 1, "rms": 0.1}, 9),
        ({"kind": "audio_qformer", **SMALL}, 3),
        ({"kind": "video_qformer", **SMALL, "frame": None}, 3),
        ({"kind": "video_qformer", **SMALL, "frame": FRAME}, 3),
    ],
)
def test_there_are_as_many_tokens_as_slots_and_all_that_learns_has_a_gradient(
    settings: dict[str, Any], slots: int
) -> None:
    grid = Grid(3, 2, 5)
    spec = adapter_spec(settings).value
    module = spec.build(10, 16)
    tokens = module(Features(torch.randn(2, 30, 10)), grid)
    tokens.square().sum().backward()
    assert spec.layout(grid) == (Slots(slots),)
    assert tokens.shape == (2, slots, 16)
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []


def test_sizes_are_those_of_the_published_models() -> None:
    with torch.device("meta"):
        frame = QFormer().build(1408, 4096)
        video, audio = VideoQFormer().build(1408, 4096), AudioQFormer().build(1024, 4096)
    count = {name: sum(it.numel() for it in part.parameters()) for name, part in frame.named_children()}
    # BLIP-2's Q-Former has 105.1 million parameters in transformers, beside its 32 queries.
    assert count["frame"] == 105_137_664 + 32 * 768
    assert video.get_parameter("video.positions.weight").shape == (32, 768)
    assert audio.get_parameter("positions.weight").shape == (8, 1024)
    assert audio.get_parameter("transformer.queries").shape == (8, 768)
    keys = [name for name, _ in video.named_parameters() if name.endswith("crossattention.attention.key.weight")]
    assert sum(name.startswith("frame.") for name in keys) == 6
    assert sum(name.startswith("video.") for name in keys) == 2


@torch.no_grad()
def test_it_computes_under_autocast_what_it_computes_in_fp32() -> None:
    module = VideoQFormer(**SMALL, frame=None).build(10, 16).eval()
    features, grid = torch.randn(2, 8, 10), Grid(2, 2, 2)
    exact = module(Features(features), grid)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module(Features(features.bfloat16()), grid)
    # bf16 keeps 8 bits: under 1 % a product, through two layers.
    assert (rounded.float() - exact).norm() / exact.norm() < 3e-2


def test_more_frames_than_positions_are_refused_with_both_numbers() -> None:
    for spec in (VideoQFormer(frames=8), AudioQFormer()):
        with pytest.raises(DataError, match="it has 9 frames, and the adapter positions for 8"):
            spec.layout(Grid(9, 1, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "qformer", "heads": 5, "dropout": 1.0}, "width: 768 can't be divided among 5 heads; dropout: from 0"),
        ({"kind": "qformer", "projection": True}, "projection: it is loaded from `weights`, and without `rms`"),
        ({"kind": "qformer", "layers": 0, "rms": 0}, "layers: at least 1, got 0; rms: must be greater than 0"),
        ({"kind": "video_qformer", "frame": {"quries": 3}}, "unknown key 'frame.quries'"),
        ({"kind": "video_qformer", "frame": {"queries": 0}, "frames": 1.5}, "frames: .*frame: queries: at least 1"),
        ({"kind": "video_qformer", "frame": 7}, "frame: should be a mapping, got 7"),
        ({"kind": "audio_qformer", "frame": None}, "unknown key 'frame'"),
    ],
)
def test_wrong_settings_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter_spec(settings)
