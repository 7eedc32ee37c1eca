"""What a Q-Former reads of an instruction, and what it makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmsft.adapters import QFormer, adapter_spec
from mmsft.adapters.instruction import BESIDE, load_tokenizer
from mmsft.adapters.spec import Slots
from mmsft.errors import ConfigError
from mmsft.modalities.spec import Features
from mmsft.types import Context, Grid
from tests.model.blip import bert, shaken

SMALL: dict[str, Any] = {"queries": 3, "layers": 2, "heads": 2, "width": 8, "inner": 16}
GRID = Grid(2, 1, 4)


@pytest.fixture
def spec(tmp_path: Path) -> QFormer:
    return QFormer(**SMALL, instruction=8, tokenizer=str(bert(tmp_path)))


def words(spec: QFormer, text: str) -> str:
    tokenizer = load_tokenizer(str(spec.tokenizer))
    return " ".join(tokenizer.convert_ids_to_tokens(list(spec.context(text))))


def context(spec: QFormer, texts: list[str], wider: int = 0) -> Context:
    """Returns questions, the n-th about the n-th medium, padded to the longest and a few more."""
    found = [spec.context(text) for text in texts]
    width = max(map(len, found)) + wider
    ids = torch.full((len(found), width), 7)
    mask = torch.zeros(len(found), width, dtype=torch.bool)
    for row, each in enumerate(found):
        ids[row, : len(each)] = torch.tensor(each)
        mask[row, : len(each)] = True
    return Context(ids, mask, torch.arange(len(found)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What colour is it?", "[CLS] what colour is it ? [SEP]"),
        ("", "[CLS] [SEP]"),
        ("[SEP] it", "[CLS] [ sep ] it [SEP]"),
        ("what is it ? how many ? which one ?", "[CLS] how many ? which one ? [SEP]"),
    ],
)
def test_it_reads_the_end_of_a_text_between_its_own_control_tokens(spec: QFormer, text: str, expected: str) -> None:
    # Eight tokens at the most; of a longer text those at its end.
    assert words(spec, text) == expected


@torch.no_grad()
def test_what_is_asked_changes_the_tokens_and_padding_does_not(spec: QFormer) -> None:
    module = shaken(spec.build(5, 10))
    features = Features(torch.randn(2, 8, 5))
    tokens = module(features, GRID, context(spec, ["what is it", "how many ?"]))
    wider = module(features, GRID, context(spec, ["what is it", "how many ?"], wider=3))
    other = module(features, GRID, context(spec, ["what is it", "which one ?"]))
    alone = module(Features(features.values[1:]), GRID, context(spec, ["how many ?"]))
    # fp32: the same products; with padding in another order.
    torch.testing.assert_close(wider, tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, tokens[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(other[0], tokens[0], atol=1e-5, rtol=0)
    assert (other[1] - tokens[1]).abs().max() > 0.05


def test_each_frame_is_looked_at_with_the_same_question(spec: QFormer) -> None:
    module = spec.build(5, 10).eval()
    features = torch.randn(1, 8, 5)
    asked = context(spec, ["how many ?"])
    frames = [module(Features(features[:, 4 * t : 4 * t + 4]), Grid(1, 1, 4), asked) for t in range(2)]
    whole = module(Features(features), GRID, asked)
    assert spec.layout(GRID) == (Slots(whole.shape[1]),)
    torch.testing.assert_close(whole, torch.cat(frames, dim=1), atol=1e-5, rtol=0)  # fp32, as above


def test_all_that_learns_has_a_gradient(spec: QFormer) -> None:
    module = spec.build(5, 10)
    module(Features(torch.randn(1, 8, 5)), GRID, context(spec, ["how many ?"])).square().sum().backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []


def test_the_tokenizer_may_lie_beside_the_weights(tmp_path: Path) -> None:
    bert(tmp_path / BESIDE)
    assert QFormer(instruction=8, weights=str(tmp_path)).context("it ?") == (2, 9, 15, 3)
    with pytest.raises(ConfigError, match=r"the Q-Former's tokenizer .* can't be loaded"):
        QFormer(instruction=8, tokenizer=str(tmp_path)).context("it ?")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instruction": 128}, "tokenizer: without `weights`, an `instruction` needs one; name that of a BERT"),
        ({"instruction": 2, "tokenizer": "bert"}, "instruction: from 3 to 512 tokens, got 2"),
        ({"tokenizer": "bert"}, "tokenizer: it is for an `instruction`; set that, or leave it out"),
    ],
)
def test_wrong_settings_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter_spec({"kind": "qformer", **settings})
