"""Follows a training step without computing it: what it holds in memory, part by part, and what it has to compute."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from mmsft.config import StageConfig
from mmsft.errors import MmsftError
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import named_parameters
from mmsft.model.tuning.lora import skip_idle_lora
from mmsft.objectives import sft
from mmsft.train.optim import build, freeze, select
from mmsft.types import Batch, Pack, Segment

PARTS: Final = ("weights", "weights in 16 bits", "gradients", "optimiser", "activations", "logits", "inputs")
"""Of a step's memory."""

_aten = torch.ops.aten
_KERNELS: Final[Mapping[Any, Any]] = {
    # Torch counts none that add to what is there,
    _aten.addmm_: flop_registry[_aten.addmm],
    _aten.baddbmm_: flop_registry[_aten.baddbmm],
    # and of these those of a GPU only; the arguments that count stand at the same places.
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}
_FLOPS: Final[Mapping[Any, Any]] = {**flop_registry, **_KERNELS}


class Op(NamedTuple):
    """What one operator has to do: products and sums, in 16 bits or not, and bytes to read and write."""

    flops: int
    narrow: bool
    moved: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a micro-batch's forward and backward pass and the optimiser's step take.

    Attributes:
        parts: bytes by part (`PARTS`) when there are the most.
        ops: of the forward and backward pass.
        closing: of clipping and the optimiser.
    """

    parts: Mapping[str, int]
    ops: Sequence[Op]
    closing: Sequence[Op]

    @property
    def peak(self) -> int:
        """Most bytes held at once."""
        return sum(self.parts.values())

    @property
    def flops(self) -> int:
        """Products and sums of the forward and backward pass."""
        return sum(op.flops for op in self.ops)


class Unfollowed(MmsftError):
    """The model's code looks at values, so that its step can't be followed without them."""


class Simulation:
    """A model whose parameters are as large as they are and hold nothing.

    Tensors without values go through the model's own code, forward and backward, so that what autograd keeps, and when
    it lets go of it, is not guessed. On a GPU attention in packs holds neither scores nor masks; there trees are taken
    for one long thread, whose attention holds as much.

    Args:
        model: built without the decoder's weights; its parameters are taken away.
        bf16: compute under autocast.
        gpu: attend as on a GPU.
    """

    def __init__(self, model: MultimodalModel, *, bf16: bool, gpu: bool) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._bf16, self._gpu = bf16, gpu
        self.model = model
        if gpu:
            # One kernel for a whole pack, as FlexAttention is there.
            model.long = 0
        self._empty()

    def _empty(self) -> None:
        known: dict[int, Tensor] = {}
        for module in self.model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in known:
                        known[id(tensor)] = self._like(tensor)
                    held[name] = known[id(tensor)]  # type: ignore[assignment] # a parameter's like is one

    def _like(self, tensor: Tensor) -> Tensor:
        with self._mode:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

    def step(self, stage: StageConfig, batch: Batch, *, accumulates: bool, lora_trained: bool = True) -> Cost:
        """Follows one micro-batch and the optimiser's step behind it, with the optimiser's state of steps before.

        Args:
            stage: what learns, and how.
            batch: the micro-batch; its values don't matter.
            accumulates: the gradients of a micro-batch before it are there.
            lora_trained: the decoder's LoRA has learned before or learns now.

        Raises:
            Unfollowed: the model's code looks at values.
        """
        names = named_parameters(self.model)
        groups = select(names, stage.train)
        freeze(names, groups)
        skip_idle_lora(self.model.decoder, lambda matrix: lora_trained)
        self.model.checkpoint_activations(stage.activation_checkpointing)
        self.model.train()
        learning = [names[name] for group in groups for name in group.names]
        optimizer = build(names, groups, stage.optimizer)
        watch = _Watch(self.model.decoder.get_output_embeddings().out_features, self._seen(batch))
        watch.hold("weights", [*self.model.parameters(), *self.model.buffers()])
        hooks = [it.register_post_accumulate_grad_hook(watch.gradient) for it in learning]
        try:
            with self._mode, watch:
                watch.hold("gradients", _zero_gradients(learning))
                optimizer.step()
                watch.hold("optimiser", tree_leaves(dict(optimizer.state)))
                if not accumulates:
                    optimizer.zero_grad(set_to_none=True)
                inputs = self._inputs(batch, watch)
                watch.begin()
                self._forward_backward(inputs)
                between = len(watch.ops)
                torch.nn.utils.clip_grad_norm_(learning, stage.clip or torch.inf)
                optimizer.step()
        except RuntimeError as error:  # whatever fake tensors can't do; torch has no narrower class for all of it
            reason = str(error).partition("\n")[0]
            raise Unfollowed(
                f"{type(self.model.decoder).__name__} and its towers can't be followed without values "
                f"({type(error).__name__}: {reason}); `mmsft train` doesn't mind"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in learning:
                parameter.grad = None
        return Cost(watch.worst, watch.ops[:between], watch.ops[between:])

    def _seen(self, batch: Batch) -> float:
        """Returns the part of a call's pairs of tokens that attention without a mask computes."""
        if not self._gpu or batch.pack is None:
            return 0.5  # what is causal
        return float((batch.positions + 1).sum()) / batch.input_ids.numel() ** 2

    def _forward_backward(self, batch: Batch) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            loss = sft(self.model, batch, 1)
        loss.sum.backward()

    def _inputs(self, batch: Batch, watch: "_Watch") -> Batch:
        if self._gpu and batch.pack is not None:
            tokens = batch.input_ids.numel()
            batch = replace(batch, pack=Pack((Segment(0, tokens),), batch.pack.until))
        found: list[Tensor] = []

        def empty(tensor: Tensor) -> Tensor:
            found.append(torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))
            return found[-1]

        inputs = batch.map(empty)
        watch.hold("inputs", found)
        return inputs


def _zero_gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    gradients = []
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return gradients


@dataclass(slots=True)
class _Block:
    """Memory under a tensor, and which part it is of."""

    size: int
    part: str


@dataclass
class _Held:
    """Bytes that are held, by part."""

    parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    total: int = 0

    def add(self, block: _Block, sign: int) -> None:
        self.parts[block.part] += sign * block.size
        self.total += sign * block.size


class _Watch(TorchDispatchMode):
    """Sees each operator: what memory it takes, what it computes; and when memory is given back.

    Args:
        vocabulary: tells logits from the rest.
        seen: part of the pairs of tokens that an attention's kernel computes.
    """

    def __init__(self, vocabulary: int, seen: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen
        self.ops: list[Op] = []
        self.worst: dict[str, int] = {}
        self._vocabulary = vocabulary
        self._held = _Held()
        self._most = 0
        self._blocks = WeakIdKeyDictionary()

    def begin(self) -> None:
        """Forgets what was computed until now, and the peak."""
        self.ops, self._most = [], 0

    def hold(self, part: str, tensors: Iterable[Any]) -> None:
        """Files memory, known already or not, under a part."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            block = self._block(tensor, part)
            self._held.add(block, -1)
            block.part = part
            self._held.add(block, 1)

    def gradient(self, parameter: Tensor) -> None:
        """Files a parameter's gradient, now that it is there."""
        self.hold("gradients", [parameter.grad])

    def _block(self, tensor: Tensor, part: str) -> _Block:
        storage = tensor.untyped_storage()
        block: _Block | None = self._blocks.get(storage)
        if block is None:
            block = _Block(storage.nbytes(), part)
            self._blocks[storage] = block
            self._held.add(block, 1)
            weakref.finalize(storage, self._held.add, block, -1)
        return block

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:
            return out
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        fresh = [tensor for tensor in made if tensor.untyped_storage() not in self._blocks]
        for tensor in fresh:
            self._block(tensor, self._part(func, tensor, given))
        moved = 0
        if fresh or func._schema.is_mutable:  # else it gives another view of what there is
            moved = sum(tensor.numel() * tensor.element_size() for tensor in (*given, *made))
        counted = _FLOPS.get(func.overloadpacket)
        flops = counted(*args, **(kwargs or {}), out_val=out) if counted else 0
        if func.overloadpacket in _KERNELS:
            flops = int(flops * self._seen)
        narrow = bool(given) and given[0].element_size() == 2
        self.ops.append(Op(flops, narrow, moved))
        if self._held.total > self._most:
            self._most, self.worst = self._held.total, dict(self._held.parts)
        return out

    def _part(self, func: Any, tensor: Tensor, given: Sequence[Tensor]) -> str:
        if func is _aten._to_copy.default and self._block(given[0], "activations").part == "weights":
            return "weights in 16 bits"
        if tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary:
            return "logits"
        return "activations"
