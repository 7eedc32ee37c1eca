"""A pack of trees learns what its threads learn one by one, and what they learn padded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmsft.adapters import Mlp2xGelu
from mmsft.config import Checkpointing, LoraConfig
from mmsft.data.media_reader import Loaded, MediaReader
from mmsft.data.tree import join
from mmsft.modalities import Clip
from mmsft.model.fusion import MultimodalModel
from mmsft.model.tuning.lora import add_lora
from mmsft.types import Encoded, Media, Pack
from tests.data.chains import chain
from tests.makers import picture
from tests.model.tiny import clip_folder, llama, model_with_tower
from tests.parity.compare import (
    EXACT,
    Learned,
    apart,
    blocks_of,
    difference,
    learned,
    packed,
    padded,
    shared_from,
)


class Lab:
    """A tiny model with a tower, and two pictures."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        modality = Clip(str(clip_folder(folder / "clip")))
        self.model = model_with_tower(modality, decoder=llama())
        self.model.find_attention()
        assert self.model.packs
        self.reader = MediaReader({"image": (modality, Mlp2xGelu())})
        self.red, self.blue = (
            Media("image", str(picture(folder / f"{colour}.png", colour))) for colour in ("red", "blue")
        )
        self.loaded: Loaded = {medium: self.reader.load(medium) for medium in (self.red, self.blue)}

    def tree(self, *threads: Sequence[int | str]) -> Encoded:
        """Joins threads of tokens and pictures, "red" or "blue", which take four slots."""
        pictures = {"red": self.red, "blue": self.blue}
        blocks = [[pictures[b] if isinstance(b, str) else b for b in thread] for thread in threads]
        return join([chain(thread, slots=4) for thread in blocks])

    def learned(self, trees: Sequence[Encoded]) -> Learned:
        return learned(self.model, packed(trees, self.reader, self.loaded))

    def apart(self, trees: Sequence[Encoded]) -> Learned:
        return learned(self.model, apart(trees, self.reader, self.loaded))

    def padded(self, trees: Sequence[Encoded]) -> Learned:
        return learned(self.model, padded(trees, self.reader, self.loaded))

    def pictured(self) -> list[Encoded]:
        """Returns a tree with pictures in prefix and branches, one with none, and a chain."""
        return [
            self.tree(
                [1, 2, "red", 3, 4, 5, 6, 7],
                [1, 2, "red", 3, 4, "blue", 5, 6],
                [1, 2, "red", 3, 4, "blue", 8, 9, 10, 11],
                [1, 2, "blue", 9, 3, "red", "red", 8],
            ),
            self.tree([1, 12, 13, 14, 15], [1, 12, 13, 16], [1, 17]),
            self.tree([1, 20, 21, 22, 23, 24, 25]),
        ]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


# Few kinds of blocks, so that threads begin alike; the first is text, since a first token can't be learned.
THREAD = st.lists(st.sampled_from([2, 3, 4, 5, "red", "blue"]), min_size=0, max_size=9).map(lambda said: [1, *said, 6])
TREES = st.lists(st.lists(THREAD, min_size=1, max_size=5), min_size=1, max_size=3)


@settings(max_examples=12, deadline=None)
@given(TREES, st.sampled_from([3, 8, 64]), st.sampled_from([1, 3, 99]))
@example([[[1, "red", 2], [1, "red", 3, "blue", 4]], [[1, 2, 3]]], 3, 99)
@example([[[1, 2, 3, "red", 2], [1, 2, 3, "red", 3]], [[1, 2, 3]], [[1, 2, 4, 5], [1, 2, 4, 5, 6, 6]]], 3, 1)
def test_random_trees_learn_what_their_threads_learn(
    lab: Lab, said: list[list[list[int | str]]], size: int, least: int
) -> None:
    trees = [lab.tree(*threads) for threads in said]
    one_by_one = lab.apart(trees)
    with blocks_of(size), shared_from(least):
        assert difference(lab.learned(trees), one_by_one) < EXACT
    assert difference(lab.padded(trees), one_by_one) < EXACT


@pytest.mark.parametrize("size", [4, 64])
def test_pictures_in_prefix_and_branches_learn_what_their_threads_learn(lab: Lab, size: int) -> None:
    trees = lab.pictured()
    with blocks_of(size):
        together = lab.learned(trees)
    assert difference(together, lab.apart(trees)) < EXACT
    assert any(name.startswith("towers") for name in together.gradients)


def test_packs_of_one_tree_each_learn_what_one_pack_learns(lab: Lab) -> None:
    trees = lab.pictured()
    each = [batch for tree in trees for batch in packed([tree], lab.reader, lab.loaded)]
    assert difference(learned(lab.model, each), lab.learned(trees)) < EXACT


def test_the_order_of_trees_in_a_pack_changes_nothing(lab: Lab) -> None:
    trees = lab.pictured()
    assert difference(lab.learned(trees[::-1]), lab.learned(trees)) < EXACT


def test_a_turn_in_a_shared_prefix_counts_once(lab: Lab) -> None:
    trees = [lab.tree([1, 2, 3, 4], [1, 2, 3, 5])]
    shared = replace(trees[0], targets=join([chain([1, 2, 3, 4])]).targets)
    # The first thread learns 2, 3 and 4; the second, which shares 2 and 3, nothing of its own.
    assert difference(lab.learned([shared]), lab.learned([lab.tree([1, 2, 3, 4])])) < EXACT


def test_a_neighbour_that_is_seen_or_a_position_that_is_shifted_would_show(lab: Lab) -> None:
    trees = lab.pictured()
    [batch] = packed(trees, lab.reader, lab.loaded)
    assert batch.pack is not None
    tokens = batch.positions.shape[1]
    blind = replace(batch, pack=Pack(batch.pack.segments, torch.full((tokens,), tokens)))
    shifted = replace(batch, positions=torch.where(batch.positions > 7, batch.positions + 1, batch.positions))
    expected = lab.apart(trees)
    for wrong in (blind, shifted):
        with blocks_of(64):
            assert difference(learned(lab.model, [wrong]), expected) > 100 * EXACT


def lora_model(lab: Lab) -> MultimodalModel:
    torch.manual_seed(1)
    decoder = llama()
    decoder.load_state_dict(lab.model.decoder.state_dict())
    decoder.requires_grad_(False)
    add_lora(decoder, LoraConfig(r=2, alpha=4))
    for name, parameter in decoder.named_parameters():
        if "lora_B" in name:  # which is zero at first, so that A would learn nothing
            torch.nn.init.normal_(parameter, std=0.3)
    model = MultimodalModel(decoder)
    model.find_attention()
    assert model.packs
    return model


def text_trees() -> list[Encoded]:
    prefix = list(range(1, 9))
    lines = [[*prefix, 10, 11, 12], [*prefix, 10, 13], [*prefix, *range(14, 30)], [1, 2, 30, 31, 32]]
    return [join([chain(line) for line in lines]), join([chain([1, 40, 41, 42]), chain([1, 40, 43])]), chain([1, 5, 6])]


def test_lora_learns_in_trees_what_it_learns_in_threads(lab: Lab) -> None:
    model, trees = lora_model(lab), text_trees()
    with blocks_of(8):
        together = learned(model, packed(trees))
    assert difference(together, learned(model, apart(trees))) < EXACT
    assert all("lora_" in name for name in together.gradients)


@pytest.mark.parametrize("which", ["selective", "full"])
@pytest.mark.parametrize("size", [4, 64])
def test_recomputed_activations_learn_the_same(lab: Lab, size: int, which: Checkpointing) -> None:
    trees = lab.pictured()
    kept = lab.apart(trees)
    lab.model.train()
    lab.model.checkpoint_activations(which)
    try:
        with blocks_of(size):
            recomputed = lab.learned(trees)
    finally:
        lab.model.checkpoint_activations("none")
        lab.model.eval()
    assert difference(recomputed, kept) < EXACT


def test_autocast_learns_in_trees_what_it_learns_in_threads_to_the_rounding_of_bf16(lab: Lab) -> None:
    trees = lab.pictured()
    with torch.autocast("cpu", dtype=torch.bfloat16), blocks_of(8):
        together, one_by_one = lab.learned(trees), lab.apart(trees)
    exact = lab.apart(trees)
    # A bf16 number has 8 bits, so that threads are some per cent off; a pack may round elsewhere, not worse.
    assert abs(together.loss - one_by_one.loss) < 0.01 * exact.loss
    assert difference(together, exact) < 2 * difference(one_by_one, exact) < 0.5
