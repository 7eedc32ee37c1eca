"""How full packs of real rows are, and how evenly they are dealt out."""

import pytest

from mmsft.config import DecoderConfig
from mmsft.data.chat import ChatEncoder
from mmsft.data.formats import FORMATS
from mmsft.data.pack import bins, deal
from mmsft.data.sources import open_rows
from mmsft.data.template import resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.model.decoder import load_tokenizer
from mmsft.types import Encoded
from tests.makers import fetched


@pytest.mark.assets
def test_alpacas_rows_fill_packs_of_2048_to_97_percent_and_none_is_dropped() -> None:
    decoder = next(fetched("smollm2-135m-instruct").glob("*.gguf"))
    tokenizer = Tokenizer(load_tokenizer(DecoderConfig(name=str(decoder))))
    encoder = ChatEncoder(tokenizer, resolve_template("auto", tokenizer))
    rows = open_rows(fetched("llamafactory-data") / "alpaca_en_demo.json")
    talks = [FORMATS["alpaca"](rows[index], rows.row_id(index)) for index in range(len(rows))]
    sizes = [len(row) for row in encoder.encode_all(talks, [0] * len(talks)) if isinstance(row, Encoded)]
    assert len(sizes) == len(rows) == 999
    for shares in (1, 2, 4):
        filled = [sum(sizes[item] for item in some) for some in bins(sizes, 2048, shares)]
        assert sum(sizes) / (2048 * len(filled)) >= 0.97
        loads = [sum(filled[place] for place in places) for places in deal(filled, shares)]
        assert min(loads) > 0.99 * max(loads)  # no process waits for more than a hundredth of a step
