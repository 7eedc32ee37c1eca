from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mmsft.data.encoding import Encoding
from mmsft.data.loader import StepData, Steps
from mmsft.duration import Duration
from mmsft.errors import Diverged
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import named_parameters
from mmsft.objectives import sft
from mmsft.parallel import Ranks
from mmsft.train.loop import Trainer, train
from mmsft.types import Batch
from tests.makers import Lab

ALL = 10**6


@dataclass
class Bench:
    """A model of which adapter, tower and LoRA learn, by plain SGD: a step is its gradient."""

    lab: Lab
    model: MultimodalModel
    steps: Callable[[int], Steps]

    def trainer(self, rate: float = 1.0, clip: float | None = None) -> Trainer:
        learning = [p for name, p in named_parameters(self.model).items() if "lora" in name or "towers" in name]
        optimizer = torch.optim.SGD([{"params": learning, "peak": rate, "pattern": "all"}], lr=rate)
        return Trainer(self.model, optimizer, sft, Ranks("fp32"), lambda step: 1.0, 0, 1, clip)

    def gradients(self, data: Iterable[StepData]) -> tuple[list[float], dict[str, Tensor]]:
        """Returns the losses, and by how much the steps move each parameter."""
        before = {name: p.detach().clone() for name, p in named_parameters(self.model).items()}
        done = list(train(self.trainer(), data, 1))
        moved = {name: p.detach() - before[name] for name, p in named_parameters(self.model).items()}
        with torch.no_grad():
            for name, parameter in named_parameters(self.model).items():
                parameter.copy_(before[name])
        return [step.loss for step in done], moved


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    lab = Lab.make(tmp_path, rows=12)
    run = lab.run("a")
    model = run.model()
    torch.manual_seed(2)
    for name, parameter in named_parameters(model).items():
        parameter.requires_grad_("lora" in name or "towers" in name)
        if name.endswith(".B"):  # with B at its initial 0, A would have no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    recipe = run.config.stages[0].recipe
    mixture, encoder = run.mixture(recipe), run.encoder(recipe)

    def steps(micro_tokens: int) -> Steps:
        return Steps(mixture, Encoding(encoder, run.reader, micro_tokens), 0, Duration(8, "examples"), 12)

    return Bench(lab, model, steps)


@pytest.mark.parametrize("micro_tokens", [60, 100, 200])
def test_the_accumulation_split_changes_neither_loss_nor_gradient(bench: Bench, micro_tokens: int) -> None:
    whole, split = bench.steps(ALL)[0], bench.steps(micro_tokens)[0]
    assert len(whole.micro) == 1 < len(split.micro)
    [loss], gradient = bench.gradients([whole])
    [split_loss], split_gradient = bench.gradients([split])
    # fp32 sums in another order: a few times 2⁻²⁴ of the numbers added
    assert split_loss == pytest.approx(loss, rel=1e-6)
    assert any(gradient[name].abs().max() > 1e-3 for name in gradient if "encoder" in name)
    for name, move in gradient.items():
        torch.testing.assert_close(split_gradient[name], move, atol=1e-6, rtol=1e-5)


def test_what_does_not_learn_stays_to_the_bit(bench: Bench) -> None:
    _, moved = bench.gradients([bench.steps(ALL)[0]])
    still = {name for name, move in moved.items() if not move.any()}
    assert {name for name in moved if name.startswith("decoder.") and "lora" not in name} <= still
    assert not any("adapter" in name or "lora" in name for name in still)


def test_clipping_bounds_the_gradient_and_reports_it_unclipped(bench: Bench) -> None:
    free = next(iter(train(bench.trainer(rate=1e-9), [bench.steps(ALL)[0]], 1)))
    before = {name: p.detach().clone() for name, p in named_parameters(bench.model).items()}
    [clipped] = train(bench.trainer(rate=1.0, clip=0.5), [bench.steps(ALL)[0]], 1)
    moved = torch.cat([(p.detach() - before[name]).flatten() for name, p in named_parameters(bench.model).items()])
    assert clipped.grad_norm == pytest.approx(free.grad_norm, rel=1e-5)
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_losses_by_source_make_the_whole(bench: Bench) -> None:
    [step] = train(bench.trainer(), [bench.steps(60)[0]], 1)
    assert step.loss_by_source(["rows"]) == {"rows": pytest.approx(step.loss)}


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(bench: Bench) -> None:
    with torch.no_grad():
        next(p for name, p in named_parameters(bench.model).items() if name.endswith(".A"))[0, 0] = torch.inf
    before = {name: p.detach().clone() for name, p in named_parameters(bench.model).items()}
    data = bench.steps(ALL)[0]
    with pytest.raises(Diverged, match=r"step 1: loss nan.*were (rows\.jsonl:\d+, ){7}rows\.jsonl:\d+\nnothing"):
        list(train(bench.trainer(), [data], 1))
    after = named_parameters(bench.model)
    assert all(torch.equal(value, after[name].detach()) for name, value in before.items())


def test_divergence_names_each_row_of_a_tree(bench: Bench) -> None:
    with torch.no_grad():
        next(p for name, p in named_parameters(bench.model).items() if name.endswith(".A"))[0, 0] = torch.inf
    data = bench.steps(ALL)[0]
    names = tuple(f"rows.jsonl:{number}" for number in range(64))
    micro = replace(data.micro[0], ids=("rows.jsonl:0 and 63 more",), rows=names)
    with pytest.raises(Diverged, match=r"were rows\.jsonl:0, .*rows\.jsonl:19 and 44 more\n"):
        list(train(bench.trainer(), [replace(data, micro=(micro,))], 1))


def test_a_gradient_that_is_not_finite_stops_too(bench: Bench) -> None:
    def steep(model: torch.nn.Module, batch: Batch, sources: int) -> object:
        loss = sft(model, batch, sources)
        return type(loss)(loss.sum + (loss.sum - loss.sum.detach()).sqrt(), loss.count, loss.by_source)

    trainer = bench.trainer()
    object.__setattr__(trainer, "objective", steep)
    with pytest.raises(Diverged, match="gradient norm nan"):
        list(train(trainer, [bench.steps(ALL)[0]], 1))


def test_a_step_in_which_nothing_can_be_learned_moves_nothing(bench: Bench) -> None:
    steps = bench.steps(ALL)
    full = steps[0]
    (bench.lab.folder / "rows.jsonl").write_text("broken")
    empty = steps[0]
    assert (empty.used, len(empty.entries), empty.micro[0].ids) == (0, 8, ("(no row)",))
    trainer = bench.trainer()
    trainer.optimizer.param_groups[0]["momentum"] = 0.9  # of the full step before
    running = train(trainer, [full, empty], 2)
    next(running)
    before = {name: p.detach().clone() for name, p in named_parameters(bench.model).items()}
    [step] = running
    assert step.learned_nothing
    assert step.grad_norm == 0
    assert all(torch.equal(value, named_parameters(bench.model)[name]) for name, value in before.items())


def test_dropout_follows_from_seed_and_step(bench: Bench) -> None:
    drawn = []

    def draw(model: torch.nn.Module, batch: Batch, sources: int) -> object:
        drawn.append(torch.rand(1).item())
        return sft(model, batch, sources)

    for first in (0, 1):
        trainer = bench.trainer(rate=1e-9)
        object.__setattr__(trainer, "objective", draw)
        list(train(trainer, [bench.steps(ALL)[number] for number in range(first, 2)], 2))
    assert drawn[0] != drawn[1] == drawn[2]


def test_seconds_are_those_of_a_step_and_not_of_what_is_done_between(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("mmsft.train.loop.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def data() -> Iterator[StepData]:
        for number in (0, 1):
            clock[0] += 1
            yield bench.steps(ALL)[number]

    seconds = []
    for step in train(bench.trainer(rate=1e-9), data(), 2):
        seconds.append(step.seconds)
        clock[0] += 100
    assert seconds == [1, 1]
