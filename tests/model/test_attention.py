"""Attention in packs against the same with one dense mask, and how packs are cut for it."""

from functools import cache, partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mmsft.model import attention
from mmsft.model.attention import Block, Trees, Unsupported, attend_by_trees, blocks, visible
from mmsft.types import Segment
from tests.model.forests import SHAPES, caterpillar, chain_of, dense_mask, forest, pack_of, positions_of

FORESTS = SHAPES.map(forest)
WINDOWS = st.none() | st.integers(1, 12)
SIZES = st.integers(1, 24)
# Order of additions over at most 108 keys, in fp32.
ROUNDING = 1e-5

States = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""

few = partial(settings, deadline=None)  # a busy machine is no defect


def states(tokens: int, heads: int = 4, key_heads: int = 2, width: int = 8, value_width: int = 6) -> States:
    drawn = torch.Generator().manual_seed(tokens)

    def draw(count: int, size: int) -> Tensor:
        return torch.randn(1, count, tokens, size, generator=drawn).requires_grad_()

    return draw(heads, width), draw(key_heads, width), draw(key_heads, value_width)


def trees_of(segments: tuple[Segment, ...], size: int = 64, long: int = 1024) -> Trees:
    return Trees(pack_of(segments), positions_of(segments), size, long)


def dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None = None
) -> Tensor:
    """The definition: one mask of the whole pack, each key head repeated for its query heads."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    score = query @ key.transpose(2, 3) * scale
    score = score if softcap is None else softcap * torch.tanh(score / softcap)
    return score.masked_fill(~mask, -torch.inf).softmax(-1) @ value


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=ROUNDING, atol=ROUNDING)


@given(FORESTS, WINDOWS)
def test_one_number_a_token_says_who_sees_whom(segments: tuple[Segment, ...], window: int | None) -> None:
    pack, every = pack_of(segments), torch.arange(segments[-1].end)
    seen = visible(pack.until, positions_of(segments), window)(every[:, None], every[None, :])
    assert torch.equal(seen, dense_mask(segments, window))


@few(max_examples=60)
@given(FORESTS, WINDOWS, SIZES, st.sampled_from([None, 0.7]), st.sampled_from([4, 1024]))
def test_blocks_give_what_a_dense_mask_gives_and_its_gradients(
    segments: tuple[Segment, ...], window: int | None, size: int, softcap: float | None, long: int
) -> None:
    inputs = states(segments[-1].end)
    out = trees_of(segments, size, long).attend(*inputs, scale=0.8, window=window, softcap=softcap)
    expected = dense(*inputs, dense_mask(segments, window), 0.8, softcap)
    close(out, expected)
    weight = torch.randn_like(out)
    mine, theirs = (torch.autograd.grad((o * weight).sum(), inputs) for o in (out, expected))
    for one, other in zip(mine, theirs, strict=True):
        close(one, other)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 5])
def test_flex_attention_and_blocks_agree_on_a_pack_longer_than_a_block_of_either(
    window: int | None, softcap: float | None
) -> None:
    segments = forest([(150, 0), (30, 1), (40, 1), (90, 0), (20, 1), (7, 2)])
    # FlexAttention has no backward pass on the CPU.
    query, key, value = (state.detach() for state in states(segments[-1].end, width=16))
    inputs = query, key, value
    trees, expected = trees_of(segments), dense(*inputs, dense_mask(segments, window), 0.8, softcap)
    close(trees.flex(*inputs, scale=0.8, window=window, softcap=softcap), expected)
    close(trees.attend(*inputs, scale=0.8, window=window, softcap=softcap), expected)


def test_heads_that_share_no_keys_need_no_repeating() -> None:
    segments = forest([(9, 0), (5, 1), (4, 1)])
    inputs = states(18, heads=2, key_heads=2)
    close(trees_of(segments, 6).attend(*inputs, scale=1.0), dense(*inputs, dense_mask(segments), 1.0))


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_dropout_leaves_weights_out_and_keeps_their_mean(softcap: float | None) -> None:
    segments = forest([(6, 0), (5, 1), (4, 1)])
    query, key, _ = (state.detach() for state in states(15))
    value = torch.ones(1, 2, 15, 500)
    out = trees_of(segments, 6).attend(query, key, value, scale=1.0, softcap=softcap, dropout=0.5)
    assert out.std() > 0.1
    # Weights that are left out, and doubled where they aren't, sum to 1 on average over 60 rows.
    assert abs(float(out[..., 0].mean()) - 1) < 0.5


@few(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), min_size=1, max_size=4).map(forest),
    st.none() | st.integers(1, 4),
    st.sampled_from([None, 0.7]),
    st.sampled_from([0.0, 0.3]),
)
def test_gradients_are_those_of_finite_differences(
    segments: tuple[Segment, ...], window: int | None, softcap: float | None, dropout: float
) -> None:
    inputs = [state.detach().double().requires_grad_() for state in states(segments[-1].end, 2, 1, 3, 2)]
    trees = trees_of(segments, 5)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        torch.manual_seed(0)
        return trees.attend(query, key, value, scale=0.8, window=window, softcap=softcap, dropout=dropout)

    assert torch.autograd.gradcheck(attend, inputs)


def test_a_layer_keeps_none_of_its_weights() -> None:
    segments, kept = forest([(30, 0), *[(60, 1)] * 8]), list[int]()
    inputs = states(segments[-1].end)

    def keep(state: Tensor) -> Tensor:
        kept.append(state.numel())
        return state

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda state: state):
        out = trees_of(segments).attend(*inputs, scale=0.8)
    assert sum(kept) == sum(state.numel() for state in (*inputs, out))


def test_in_16_bits_many_branches_add_to_the_gradient_of_what_they_share() -> None:
    segments = forest([(8, 0), *[(4, 1)] * 500])
    inputs = [state.detach().bfloat16().requires_grad_() for state in states(segments[-1].end)]
    query, key, value = inputs
    trees_of(segments).attend(query, key, value, scale=0.8).sum().backward()
    exact = [state.detach().float().requires_grad_() for state in inputs]
    trees_of(segments).attend(exact[0], exact[1], exact[2], scale=0.8).sum().backward()
    for one, other in zip(inputs, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert float((one.grad.float() - other.grad).norm() / other.grad.norm()) < 0.02


@given(FORESTS, WINDOWS, SIZES)
def test_each_token_is_in_one_block_and_meets_what_it_sees(
    segments: tuple[Segment, ...], window: int | None, size: int
) -> None:
    found = blocks(segments, size, window)
    assert [block.start for block in found] == [0, *(block.end for block in found[:-1])]
    assert found[-1].end == segments[-1].end
    mask = dense_mask(segments, window)
    for block in found:
        seen = mask[block.start : block.end]
        keys = keys_of(block, mask.shape[1])
        assert not seen[:, ~keys].any()
        assert dense_mask(segments)[block.start][keys][: block.start - block.end].all()  # but for a window


def keys_of(block: Block, tokens: int) -> Tensor:
    keys = torch.zeros(tokens, dtype=torch.bool)
    for start, end in (*block.above, (block.start, block.end)):
        assert not keys[start:end].any()
        keys[start:end] = True
    return keys


@few(max_examples=60)
@given(FORESTS, WINDOWS, SIZES)
def test_blocks_are_small_but_for_the_long_beginnings_of_threads_which_need_no_mask(
    segments: tuple[Segment, ...], window: int | None, size: int
) -> None:
    mask = dense_mask(segments, window)
    for block in blocks(segments, size, window, long=4):
        length = block.end - block.start
        own = mask[block.start : block.end, block.start : block.end]
        if block.long:
            assert not block.above
            assert length > 4
            assert torch.equal(own, torch.ones_like(own).tril())
        else:
            assert length <= size
            computed = length * int(keys_of(block, mask.shape[1]).sum())
            # What is computed and masked: its own part, and a path that others of its tokens leave.
            assert computed - int(mask[block.start : block.end].sum()) <= length * 3 * size


@pytest.mark.parametrize("segments", [chain_of(4000), caterpillar(2000)], ids=["chain", "caterpillar"])
def test_trees_of_thousands_of_segments_one_below_the_other_are_divided(segments: tuple[Segment, ...]) -> None:
    tokens, size = segments[-1].end, 64
    found = blocks(segments, size)
    assert len(found) <= 2 * tokens / size
    assert sum(len(block.above) for block in found) <= len(found) * len(segments)
    computed = sum((block.end - block.start) * int(keys_of(block, tokens).sum()) for block in found)
    assert computed <= tokens * (tokens / 2 + size)  # no more than a causal mask of all


def test_a_deep_tree_gives_what_a_dense_mask_gives() -> None:
    segments = caterpillar(300)
    inputs = states(segments[-1].end)
    # Sums of up to 300 keys instead of 100.
    expected = dense(*inputs, dense_mask(segments), 0.8)
    torch.testing.assert_close(trees_of(segments).attend(*inputs, scale=0.8), expected, rtol=1e-5, atol=3e-5)


def test_branches_meet_the_prefix_and_not_one_another() -> None:
    segments = forest([(1100, 0), *[(50, 1)] * 8])
    first, *others = blocks(segments, 64)
    assert first == Block(0, 1100, (), long=True)
    assert others == [Block(1100 + 50 * n, 1150 + 50 * n, ((0, 1100),), long=False) for n in range(8)]


def test_branches_behind_a_long_prefix_give_what_a_dense_mask_gives() -> None:
    segments = forest([(1030, 0), (50, 1), (60, 1), (9, 0)])
    inputs = states(segments[-1].end)
    out, expected = trees_of(segments).attend(*inputs, scale=0.8), dense(*inputs, dense_mask(segments), 0.8)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=3e-5)
    weight = torch.randn_like(out)
    mine, theirs = (torch.autograd.grad((o * weight).sum(), inputs) for o in (out, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_long_thread_with_a_window_makes_no_long_mask() -> None:
    trees = trees_of((Segment(0, 4000),))
    masks = [block.unseen for block in trees._plan(100, capped=False).blocks]
    assert max(mask.numel() for mask in masks) <= 64 * (64 + 100)


def test_capped_scores_which_are_held_are_never_those_of_a_long_block() -> None:
    plan = trees_of((Segment(0, 4000),))._plan(None, capped=True)
    assert max(block.end - block.start for block in plan.blocks) == 64
    assert not plan.long


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (32, 50.0)])
def test_packs_of_all_lengths_share_two_compilations_with_and_without_gradients(
    window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = cache(lambda function, device: torch.compile(function, dynamic=True, fullgraph=True, backend=counter))
    monkeypatch.setattr(attention, "_compiled", compiled)
    # Layers with a window and layers without one take turns, as in Gemma 2; a pack may be a single token.
    for grad in (True, False):
        for tokens in (300, 500, 100, 1):
            trees = trees_of(forest([(tokens, 0)]))
            inputs = tuple(state.detach() for state in states(tokens, width=16))
            with torch.set_grad_enabled(grad):
                for asked in (None, window):
                    trees.flex(*inputs, scale=0.25, window=asked, softcap=softcap)
    assert counter.frame_count <= 4  # two functions, each with and without gradients


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_under_autocast_states_of_two_widths_meet_in_the_narrower() -> None:
    segments = forest([(70, 0), (30, 1), (40, 1)])
    query, key, value = (state.detach() for state in states(140, width=16))
    expected = dense(query, key, value, dense_mask(segments), 0.25).transpose(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = attend_by_trees(layer(), query, key, value.bfloat16(), None, trees=trees_of(segments))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=3e-2)  # bf16 of values up to 4


def test_a_tree_does_not_meet_the_long_path_of_the_tree_before_it() -> None:
    segments = forest([(200, 0), (70, 1), (5, 0)])
    assert blocks(segments, 64)[-1] == Block(270, 275, (), long=False)


def test_masks_are_made_once_for_all_layers() -> None:
    segments = forest([(5, 0), (6, 1), (7, 1)])
    trees, inputs = trees_of(segments, 6), states(18)
    trees.attend(*inputs, scale=1.0)
    first = trees._plan(None, capped=False)
    trees.attend(*inputs, scale=1.0)
    assert trees._plan(None, capped=False) is first


def layer() -> nn.Module:
    return nn.Linear(1, 1).eval()


def test_without_trees_attention_raises() -> None:
    with pytest.raises(Unsupported, match="Linear was called without trees; take sdpa"):
        attend_by_trees(layer(), *states(4), None)


def test_a_mask_is_refused() -> None:
    trees = trees_of((Segment(0, 4),))
    with pytest.raises(Unsupported, match="Linear hands attention a mask"):
        attend_by_trees(layer(), *states(4), torch.ones(4, 4), trees=trees)


def test_what_is_not_known_is_refused_by_name_unless_it_is_none() -> None:
    trees = trees_of((Segment(0, 4),))
    with pytest.raises(Unsupported, match="hands attention head_mask, s_aux, which"):
        attend_by_trees(layer(), *states(4), None, trees=trees, s_aux=torch.ones(4), head_mask=1)
    attend_by_trees(layer(), *states(4), None, trees=trees, s_aux=None)


def test_the_scale_is_that_of_the_queries_width_where_none_is_given() -> None:
    segments = (Segment(0, 4),)
    inputs = states(4)
    out, _ = attend_by_trees(layer(), *inputs, None, trees=trees_of(segments))
    close(out, dense(*inputs, dense_mask(segments), 8**-0.5).transpose(1, 2))


def test_dropout_is_for_training() -> None:
    trees, inputs = trees_of((Segment(0, 9),)), states(9)
    how: dict[str, Any] = {"trees": trees, "dropout": 0.5}
    quiet = attend_by_trees(layer(), *inputs, None, **how)[0]
    assert torch.equal(quiet, attend_by_trees(layer(), *inputs, None, trees=trees)[0])
    assert not torch.equal(quiet, attend_by_trees(layer().train(), *inputs, None, **how)[0])
