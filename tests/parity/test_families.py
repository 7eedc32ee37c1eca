"""Decoders of each family learn the same in packs as thread by thread, or are found out and get padded threads."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from mmsft.data.tree import join
from mmsft.model.fusion import MultimodalModel
from mmsft.model.packs import why_not_packed
from mmsft.types import Encoded
from tests.data.chains import chain
from tests.parity.compare import EXACT, apart, blocks_of, difference, learned, packed, padded
from tests.parity.families import NOT_PACKED, PACKED

FEATURES = [(name, without) for name, family in PACKED.items() for without in family.without]
GROUPED = sorted(set(PACKED) - {"phi", "gpt2", "gpt_bigcode", "gpt_neox", "opt", "deepseek_v3", "persimmon", "biogpt"})
"""Families whose query heads share keys; the others have no such thing, or their own."""


def trees() -> list[Encoded]:
    """Returns two trees and a chain; threads are up to 14 tokens long, windows 3."""
    prefix = list(range(1, 8))
    lines = [[*prefix, 10, 11, 12, 13], [*prefix, 10, 14, 15], [*prefix, *range(20, 27)], [1, 2, 30, 31, 32]]
    return [
        join([chain(line) for line in lines]),
        join([chain([1, 40, 41, 42]), chain([1, 40, 43])]),
        chain([5, 6, 7, 8]),
    ]


def model_of(decoder: PreTrainedModel) -> MultimodalModel:
    model = MultimodalModel(decoder)
    model.find_head()
    model.find_attention()
    return model


@pytest.mark.parametrize("name", PACKED)
def test_a_pack_learns_what_its_threads_learn(name: str) -> None:
    model, some = model_of(PACKED[name].decoder(name)), trees()
    assert model.packs
    one_by_one = learned(model, apart(some))
    with blocks_of(6):
        assert difference(learned(model, packed(some)), one_by_one) < EXACT
    assert difference(learned(model, padded(some)), one_by_one) < EXACT


@pytest.mark.parametrize(("name", "without"), FEATURES, ids=[f"{name}-{next(iter(less))}" for name, less in FEATURES])
def test_the_feature_of_the_family_bites(name: str, without: Mapping[str, Any]) -> None:
    with_it = PACKED[name].decoder(name)
    other = PACKED[name].decoder(name, **without)
    other.load_state_dict(with_it.state_dict())
    batches = apart(trees())
    with torch.no_grad():
        losses = [torch.cat([model_of(decoder)(batch) for batch in batches]) for decoder in (with_it, other)]
    assert (losses[0] - losses[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", GROUPED)
def test_query_heads_share_keys(name: str) -> None:
    config = PACKED[name].decoder(name).config
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)


@pytest.mark.parametrize("name", NOT_PACKED)
def test_what_a_pack_would_get_wrong_is_refused_and_trained_as_threads(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    family, reason = NOT_PACKED[name]
    decoder = family.decoder(name)
    assert re.search(reason, why_not_packed(decoder) or "")
    model, some = model_of(decoder), trees()
    assert not model.packs
    assert "its threads are padded" in caplog.text
    assert difference(learned(model, padded(some)), learned(model, apart(some))) < EXACT
