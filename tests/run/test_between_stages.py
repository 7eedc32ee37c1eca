"""What a stage takes ends with it."""

import gc

import torch

from mmsft.model.names import named_parameters
from mmsft.run import execute
from tests.makers import Lab


def optimizers() -> set[int]:
    """Returns the ids of all optimisers that have moved something."""
    return {id(it) for it in gc.get_objects() if isinstance(it, torch.optim.Optimizer) and it.state}


def test_what_a_stage_took_is_given_back_when_the_next_one_begins(lab: Lab) -> None:
    both = {"towers.image.adapter": {"lr": 1e-3}, "decoder.lora": {"lr": 1e-3}}
    stages = [lab.stage("both", train=both), lab.stage("align")]
    gc.collect()
    before = optimizers()  # of other tests
    gc.disable()  # it is given back at once, not when the collector comes by
    try:
        for stage, _, assistant in execute(lab.run("a", stages)):
            held = [name for name, it in named_parameters(assistant.model).items() if it.grad is not None]
            assert len(optimizers() - before) == 1
            if stage.name == "align":
                assert not [name for name in held if not name.startswith("towers.image.adapter")]
    finally:
        gc.enable()
