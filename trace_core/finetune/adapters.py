"""Trainable LoRA adapters on a ComfyUI network by PEFT, and the restoration of the network afterwards."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..backbones import Backbone, casting
from ..backbones.base import PREFIX
from ..backbones.weights import is_linear, shape_of
from ..errors import LoraError
from ..lora.erasure import ErasureLora

#: PEFT's names of the trained adapter and of the given one
STUDENT, START = "student", "start"
BASE = "base"  #: state with neither adapter

_STATES = {BASE: [], START: [START], STUDENT: [START, STUDENT]}


class Adapters:
    """The adapters on a network, while attached.

    Three states share one set of weights: ``base`` (the given model), ``start`` (with the erasure that
    training starts from, usually the closed form) and ``student`` (with the trained adapter on top).
    """

    def __init__(self, network: nn.Module, names: Sequence[str], dense: bool = False):
        self._layers = {name: network.get_submodule(name) for name in names}
        self._trained = [layer for layer in self._layers.values() if STUDENT in layer.lora_A]
        self._masks: list[Tensor | None] = [None] * len(self._trained)
        self.dense = dense
        self.use(STUDENT)

    def use(self, state: str) -> None:
        """Switch to ``base``, ``start`` or ``student``."""
        for layer in self._layers.values():
            active = [name for name in _STATES[state] if name in layer.lora_A]
            layer.enable_adapters(bool(active))
            if active:
                layer.set_adapter(active)
        for layer in self._layers.values():  # PEFT makes every active adapter trainable
            for name in layer.lora_A:
                layer.lora_A[name].requires_grad_(name == STUDENT and not self.dense)
                layer.lora_B[name].requires_grad_(name == STUDENT)

    def parameters(self) -> list[nn.Parameter]:
        """Trained parameters, float32: all A (none for full matrices), then all B."""
        down = [] if self.dense else [layer.lora_A[STUDENT].weight for layer in self._trained]
        return down + [layer.lora_B[STUDENT].weight for layer in self._trained]

    def gradients(self) -> list[Tensor]:
        """Gradients of every B in layer order. For full matrices these are the gradients of the weights."""
        weights = [layer.lora_B[STUDENT].weight for layer in self._trained]
        return [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The trained factors of every layer: B ``[out, r]`` with PEFT's scale, and A ``[r, in]``."""
        return [
            (
                layer.scaling[STUDENT] * layer.lora_B[STUDENT].weight.detach(),
                layer.lora_A[STUDENT].weight.detach(),
            )
            for layer in self._trained
        ]

    def arranged(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Tensors like B and A of every layer, in the order of :meth:`parameters`."""
        down = [] if self.dense else [a for _, a in pairs]
        return down + [b for b, _ in pairs]

    def restrict(self, masks: Sequence[Tensor | None]) -> None:
        """Train only the entries of B where the mask is True; one mask per layer, None for all entries."""
        self._masks = [
            old if new is None else new if old is None else old & new
            for old, new in zip(self._masks, masks, strict=True)
        ]

    def mask_gradients(self) -> None:
        """Zero the gradients of untrained entries.

        Adam without weight decay then keeps these entries at zero.
        """
        for gradient, mask in zip(self.gradients(), self._masks):
            if mask is not None:
                gradient.mul_(mask)

    def state(self) -> list[Tensor]:
        """A copy of the trained factors, in the order of :meth:`parameters`."""
        return [p.detach().cpu().clone() for p in self.parameters()]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Restore a :meth:`state`.

        Raises:
            LoraError: if its shapes differ from these adapters'.
        """
        own = self.parameters()
        if [p.shape for p in own] != [s.shape for s in state]:
            raise LoraError(
                "the saved adapter has other layers or another rank; resume with the settings of the saved "
                "run"
            )
        with torch.no_grad():
            for p, saved in zip(own, state):
                p.copy_(saved)

    def factors(self, rank: int | None = None) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
        """The trained adapter, ``{module: (up [out, r], down [r, in])}`` float32, with PEFT's scale in up.

        Args:
            rank: rank of full matrices, cut by a singular value decomposition (Eckart and Young, 1936).

        Returns:
            the factors, and the share of the edit that was cut off, in the Frobenius norm over all layers.
        """
        out, lost, total = {}, 0.0, 0.0
        for name, layer in self._layers.items():
            if STUDENT not in layer.lora_A:
                continue
            up, down = layer.lora_B[STUDENT].weight.detach(), layer.lora_A[STUDENT].weight.detach()
            up = up.float().cpu() * layer.scaling[STUDENT]
            if self.dense:
                left, values, right = torch.linalg.svd(up, full_matrices=False)
                lost, total = lost + values[rank:].square().sum().item(), total + values.square().sum().item()
                roots = values[:rank].sqrt()
                up, down = left[:, :rank] * roots, roots[:, None] * right[:rank]
            out[PREFIX + name] = (up, down.float().cpu())
        return out, (lost / total) ** 0.5 if total else 0.0


@contextmanager
def attached(
    backbone: Backbone,
    targets: Sequence[str],
    rank: int,
    start: ErasureLora | None = None,
    seed: int = 0,
    dense: bool = False,
) -> Iterator[Adapters]:
    """Attach adapters to the layers ``targets`` of a loaded model, and restore the model afterwards.

    The restored model has the same modules and the same bits.

    Inside the context, every weight is an alias that autograd accepts. ComfyUI loads models in inference
    mode, and inference tensors cannot take part in a backward pass. An alias shares the memory of its weight.
    Layers with weights that PyTorch cannot compute with (float8, quantised, GGUF) are wrapped in a
    :class:`~trace_core.backbones.casting.CastLinear`.

    Args:
        targets: names relative to ``backbone.network``, from :meth:`Backbone.lora_targets`.
        rank: rank of the trained adapter, which starts at zero (A Kaiming, B zero).
        start: an erasure to start from; it is not trained.
        seed: seed of A.
        dense: train full matrices: A is the fixed identity, and B is the change of the weight.

    Raises:
        LoraError: if ``start`` does not fit the network.
    """
    network = backbone.network
    names = list(targets)
    shapes = {name: shape_of(module) for name, module in network.named_modules() if name in set(names)}
    if rank < 1 or not names:
        raise LoraError(
            f"an adapter of rank {rank} on {len(names)} layers trains nothing; use rank 1 or more"
        )
    narrow = min(min(shape) for shape in shapes.values())
    if rank > narrow:
        raise LoraError(f"rank {rank} exceeds the narrowest layer ({narrow}); choose a smaller one")
    before = _ModuleState(network)
    try:
        before.alias()
        casting.install(backbone.engine, network)
        given = {m.removeprefix(PREFIX): pair for m, pair in (start.modules if start else {}).items()}
        if given:
            _inject_start(network, given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _inject(network, STUDENT, {name: shapes[name][1] if dense else rank for name in names})
        if dense:
            with torch.no_grad():
                for name in names:
                    down = network.get_submodule(name).lora_A[STUDENT].weight
                    down.copy_(torch.eye(len(down)))
        yield Adapters(network, list(dict.fromkeys([*given, *names])), dense)
    finally:
        before.restore()


@contextmanager
def aliased(network: nn.Module) -> Iterator[None]:
    """Let gradients pass through a module whose weights may be inference tensors, and restore it afterwards.

    The weights are aliases as in :func:`attached`, and none of them is trained.
    """
    before = _ModuleState(network)
    try:
        before.alias()
        yield
    finally:
        before.restore()


def _inject_start(network: nn.Module, given: dict[str, tuple[Tensor, Tensor]]) -> None:
    missing = [m for m in given if not (found := _find(network, m)) or not is_linear(found)]
    if missing:
        raise LoraError(f"this erasure does not fit the model: it has no linear layer {missing[0]}")
    _inject(network, START, {m: down.shape[0] for m, (_, down) in given.items()})
    with torch.no_grad():
        for m, (up, down) in given.items():
            layer = network.get_submodule(m)
            if layer.lora_A[START].weight.shape != down.shape or layer.lora_B[START].weight.shape != up.shape:
                raise LoraError(
                    f"this erasure does not fit the model: {m} is {up.shape[0]} x {down.shape[1]} in the file"
                )
            layer.lora_A[START].weight.copy_(down)
            layer.lora_B[START].weight.copy_(up)


def _find(network: nn.Module, name: str) -> nn.Module | None:
    try:
        return network.get_submodule(name)
    except AttributeError:
        return None


def _inject(network: nn.Module, adapter: str, ranks: dict[str, int]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    pattern = "|".join(re.escape(name) for name in ranks)
    config = LoraConfig(r=1, lora_alpha=1, target_modules=pattern, rank_pattern=ranks, alpha_pattern=ranks)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, network, adapter)
    for name in ranks:
        layer = network.get_submodule(name)
        layer.lora_A[adapter].float()
        layer.lora_B[adapter].float()


def _can_be_aliased(tensor: Tensor | None) -> bool:
    """Whether a tensor is a plain inference tensor. Tensors of other classes are never part of a graph."""
    return tensor is not None and type(tensor) in (Tensor, nn.Parameter) and tensor.is_inference()


def _alias(tensor: Tensor) -> Tensor:
    """A normal tensor on the same memory. float8 passes as bytes, because DLPack lacks some types."""
    if "float8" in str(tensor.dtype):
        return torch.from_dlpack(tensor.detach().view(torch.uint8)).view(tensor.dtype)
    return torch.from_dlpack(tensor.detach())


class _ModuleState:
    """References to a network's modules, parameters, buffers and flags, for :meth:`restore`."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.attributes = set(network.__dict__)
        self.children = [(module, dict(module._modules)) for module in network.modules()]
        self.tensors = [(m, dict(m._parameters), dict(m._buffers)) for m in network.modules()]
        self.trainable = [(p, p.requires_grad) for p in network.parameters()]
        self.training = [(m, m.training) for m in network.modules()]

    def alias(self) -> None:
        """Replace inference tensors by normal ones on the same memory."""
        for module, parameters, buffers in self.tensors:
            for name, p in parameters.items():
                if _can_be_aliased(p):
                    module._parameters[name] = nn.Parameter(_alias(p), requires_grad=False)
            for name, b in buffers.items():
                if _can_be_aliased(b):
                    module._buffers[name] = _alias(b)
        self.network.eval()
        for p in self.network.parameters():
            if p.requires_grad:
                p.requires_grad_(False)

    def restore(self) -> None:
        for module, children in self.children:
            module._modules.clear()
            module._modules.update(children)
        for module, parameters, buffers in self.tensors:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        for p, flag in self.trainable:
            if p.requires_grad != flag:
                p.requires_grad_(flag)
        for module, flag in self.training:
            module.training = flag
        for name in set(self.network.__dict__) - self.attributes:
            delattr(self.network, name)
