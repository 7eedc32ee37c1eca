from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mmsft.adapters import Linear
from mmsft.config import LoraConfig
from mmsft.errors import CheckpointError
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import named_parameters
from mmsft.model.tuning.lora import add_lora
from mmsft.model.weights import load_weights, save_weights
from tests.model.test_fusion import Toy
from tests.model.test_tuning import gpt2, stir
from tests.model.tiny import llama, model_with_tower


def tuned(r: int = 2) -> MultimodalModel:
    model = model_with_tower(Toy(), Linear())
    add_lora(model.decoder, LoraConfig(r=r))
    return model


def learned(model: MultimodalModel) -> set[str]:
    return {name for name in named_parameters(model) if ".lora." in name or ".adapter." in name}


def test_what_is_saved_is_loaded_exactly_and_nothing_else_changes(tmp_path: Path) -> None:
    saved, model = tuned(), tuned()
    stir(saved, "lora_", "adapter")
    save_weights(saved, tmp_path / "w.safetensors", learned(saved))
    before = {name: parameter.clone() for name, parameter in named_parameters(model).items()}
    assert load_weights(model, tmp_path / "w.safetensors") == learned(model)
    for name, parameter in named_parameters(model).items():
        expected = named_parameters(saved)[name] if name in learned(model) else before[name]
        assert torch.equal(parameter, expected), name


def test_a_wrapped_model_saves_what_the_bare_one_loads(tmp_path: Path) -> None:
    saved, model = tuned(), tuned()
    stir(saved, "lora_", "adapter")
    wrapper = nn.Module()
    wrapper.module = saved
    save_weights(wrapper, tmp_path / "w.safetensors", learned(saved))
    load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(named_parameters(model)[name], named_parameters(saved)[name]) for name in learned(saved))


def test_the_file_names_its_classes(tmp_path: Path) -> None:
    model = tuned()
    save_weights(model, tmp_path / "w.safetensors", learned(model))
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert '"decoder": "LlamaForCausalLM"' in metadata["classes"]
    assert '"towers.image.encoder": "ToyEncoder"' in metadata["classes"]
    assert metadata["mmsft"]


def test_weights_of_another_rank_are_refused_with_both_shapes_and_nothing_is_loaded(tmp_path: Path) -> None:
    saved, model = tuned(r=4), tuned(r=2)
    stir(saved, "lora_", "adapter")
    save_weights(saved, tmp_path / "w.safetensors", learned(saved))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(CheckpointError, match=r"gate_proj\.A is \[4, 16\] there and \[2, 16\] in the model"):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_weights_for_parts_that_the_model_lacks_are_refused_by_name(tmp_path: Path) -> None:
    saved = tuned()
    save_weights(saved, tmp_path / "w.safetensors", learned(saved))
    with pytest.raises(CheckpointError, match=r"decoder\.lora\.model\.layers\.0\..* isn't in the model"):
        load_weights(MultimodalModel(llama()), tmp_path / "w.safetensors")


def test_weights_of_another_class_are_refused_whatever_the_file_is_called(tmp_path: Path) -> None:
    saved = MultimodalModel(gpt2())
    save_weights(saved, tmp_path / "llama.safetensors", set(named_parameters(saved)))
    with pytest.raises(CheckpointError, match="decoder is a GPT2LMHeadModel there and a LlamaForCausalLM in the model"):
        load_weights(MultimodalModel(llama()), tmp_path / "llama.safetensors")


def test_a_cut_off_file_and_one_of_others_are_errors(tmp_path: Path) -> None:
    model = tuned()
    path = tmp_path / "w.safetensors"
    save_weights(model, path, learned(model))
    save_file(load_file(path), tmp_path / "bare.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="can't be read"):
        load_weights(model, path)
    with pytest.raises(CheckpointError, match="was it saved by mmsft"):
        load_weights(model, tmp_path / "bare.safetensors")
