"""What docs/adapters.md says is true: its kinds are those there are, its settings give the tokens that it states."""

import re
from typing import Any

import pytest
import yaml

from mmsft.adapters import ADAPTERS, adapter_spec
from mmsft.adapters.spec import Adapter, Slots
from mmsft.run.doctor import doctor
from mmsft.types import Grid
from tests.examples.pages import DOCS, blocks
from tests.makers import Lab, finish

PAGE = (DOCS / "adapters.md").read_text(encoding="utf-8")
SYSTEMS = {
    "LLaVA-1.0": Grid(1, 16, 16),
    "LLaVA-1.5": Grid(1, 24, 24),
    "InternVL": Grid(1, 32, 32),
    "Idefics3": Grid(1, 26, 26),
    "OpenFlamingo, Otter": Grid(8, 16, 16),
    "Idefics-9B": Grid(1, 16, 16),
    "BLIP-2": Grid(1, 1, 257),
    "InstructBLIP": Grid(1, 1, 257),
    "Video-LLaMA, pictures": Grid(8, 1, 257),
    "Video-LLaMA, sound": Grid(8, 1, 1),
}


def cells(pattern: str) -> list[tuple[str, ...]]:
    """Returns the rows of the page's tables that are like this."""
    found: list[tuple[str, ...]] = re.findall(rf"^{pattern}$", PAGE, re.M)
    return found


def slots(spec: Adapter, grid: Grid) -> int:
    return sum(part.count for part in spec.layout(grid) if isinstance(part, Slots))


def test_the_table_lists_the_kinds_that_there_are() -> None:
    assert [kind for kind, _ in cells(r"\| `(\w+)` \| .+ \| (t · h · w|t · `queries`|`latents`|`queries`) \|")] == list(
        ADAPTERS
    )


def test_published_systems_have_the_tokens_that_the_page_states() -> None:
    rows = cells(r"\| (.+?) \| `(\{kind: .+\})` \| (\d+) of .+ \|")
    assert [system for system, _, _ in rows] == list(SYSTEMS)
    for system, settings, count in rows:
        spec = adapter_spec(yaml.safe_load(settings)).value
        assert slots(spec, SYSTEMS[system]) == int(count), system


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"time": 2}, 3 * 5 * 7),
        ({"pool": 4}, 5 * 16),
        ({"stride": 2}, 5 * 3 * 4),
        ({"end_of": "row"}, 5 * 5 * 8),
        ({"time": 2, "stride": 2, "end_of": "frame"}, 3 * 13),
    ],
)
def test_fewer_features_are_those_of_the_table(settings: dict[str, Any], expected: int) -> None:
    assert slots(adapter_spec({"kind": "linear", **settings}).value, Grid(5, 5, 7)) == expected


def test_the_page_has_the_adapter_literally() -> None:
    [block] = [block for block in blocks("adapters.md") if block.file]
    assert block.text == (DOCS.parent / str(block.file)).read_text(encoding="utf-8")


def test_the_adapter_of_the_page_trains_and_is_proven(tmp_path: Any) -> None:
    lab = Lab.make(tmp_path)
    model = lab.model()
    model["towers"]["image"]["adapter"] = {"kind": "examples.asked:Asked", "most": 20}
    run = lab.run("a", [lab.stage(duration="2 steps")], model=model)
    assert doctor(run).failed == []
    assert all(step.loss > 0 for step in finish(run))
