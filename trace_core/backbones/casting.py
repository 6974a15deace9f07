"""Training on weights that PyTorch cannot compute with: float8, quantised tensors, GGUF.

The base model keeps its stored bytes. Each layer dequantises its weight in the forward pass and again in the
backward pass, so that at most one layer exists in full precision. The gradient passes through the product as
if the weight were a normal tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError, is_out_of_memory
from .weights import is_linear, is_plain, shape_of, storage_of


def needs_cast(module: nn.Module) -> bool:
    """Whether a layer's weight or bias has a format without products or gradients.

    Files with quantised layers leave some as they are. ComfyUI's class for all of them is no ``nn.Linear``,
    so PEFT knows these layers only in a wrapper.
    """
    if not is_linear(module) and not isinstance(module, nn.Conv2d):
        return False
    known = isinstance(module, (nn.Linear, nn.Conv2d))
    return module.weight is not None and not (known and is_plain(module.weight) and is_plain(module.bias))


def weight_and_bias(engine, module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """The dequantised weight and bias, in the type and on the device of ``like``, with ComfyUI's patches.

    Args:
        engine: the ``comfy`` package.
        module: a layer. GGUF layers have their own ``cast_bias_weight``, and ComfyUI's scaled or quantised
            layers a ``convert_weight``.
    """
    own = getattr(module, "cast_bias_weight", None)
    weight, bias = own(like) if own is not None else engine.ops.cast_bias_weight(module, like)
    convert = getattr(module, "convert_weight", None)
    if convert is not None:
        weight = convert(weight).to(like.dtype)
    return _tensor(weight), _tensor(bias)


def _tensor(value: Tensor | None) -> Tensor | None:
    return value if value is None or type(value) is Tensor else value.detach().as_subclass(Tensor)


def check(engine, network: nn.Module, device: torch.device) -> None:
    """Dequantise one layer of each class and format on the training device, as a test.

    Raises:
        ModelError: naming the first layer and format that fails.
    """
    tried = set()
    for name, module in network.named_modules():
        if not needs_cast(module):
            continue
        kind = type(module), storage_of(module.weight), type(module.weight)
        if kind in tried:
            continue
        tried.add(kind)
        shape = (
            shape_of(module)
            if is_linear(module)
            else (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        )
        try:
            with torch.no_grad():
                weight = weight_and_bias(engine, module, torch.zeros(1, device=device))[0]
            problem = (
                None
                if weight.shape == shape and is_plain(weight)
                else f"it gives {weight.dtype} {tuple(weight.shape)}"
            )
        except Exception as error:  # any error of the format's own code
            if is_out_of_memory(error):
                raise
            problem = str(error)
        if problem:
            raise ModelError(
                f"{name} is stored as {storage_of(module.weight)}, which this ComfyUI cannot train here "
                f"({problem}); load the fp16, bf16 or fp8 file of this model"
            )


def install(engine, network: nn.Module) -> int:
    """Wrap every layer that :func:`needs_cast` in a :class:`CastLinear` or :class:`CastConv`.

    Returns the number.

    The caller restores the network's own modules afterwards.
    """
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if needs_cast(child)
    ]
    for parent, name, child in found:
        parent._modules[name] = (CastLinear if is_linear(child) else CastConv)(engine, child)
    return len(found)


class _CastsWeights:
    """Common part of both wrappers: the wrapped layer is a child module, and its weight stays hidden."""

    def _surround(self, engine, layer: nn.Module) -> None:
        nn.Module.__init__(self)
        self.layer, self.training = layer, layer.training
        self._engine = engine

    def _read(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        return weight_and_bias(self._engine, self.layer, like)

    @property
    def weight(self) -> Tensor:
        """A placeholder with the weight's device and shape, and the memory of one number.

        PEFT creates its adapters from it, in float32.
        """
        return torch.zeros((), device=self.layer.weight.device).expand(self._shape)

    @property
    def bias(self) -> None:
        return None


class CastLinear(_CastsWeights, nn.Linear):
    """A linear layer around a layer with a cast weight. PEFT treats it as a plain ``nn.Linear``."""

    def __init__(self, engine, layer: nn.Module):
        self._surround(engine, layer)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._shape = shape_of(layer)

    def forward(self, x: Tensor) -> Tensor:
        smoothing = getattr(self.layer, "pre_quant_scale", None)  # ModelOpt's AWQ, on nvfp4 files
        if smoothing is not None:
            x = x * smoothing.detach().to(x.device, x.dtype)
        rows = _Product.apply(x.reshape(-1, x.shape[-1]), self._read, F.linear, _linear_back)
        # outside the function: autograd forbids in-place writes to a view from inside it
        return rows.view(*x.shape[:-1], self.out_features)


class CastConv(_CastsWeights, nn.Module):
    """A convolution around a layer with a cast weight."""

    def __init__(self, engine, layer: nn.Conv2d):
        self._surround(engine, layer)
        self._shape = layer.weight.shape
        self._options = {
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
        }

    def forward(self, x: Tensor) -> Tensor:
        def back(gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
            return torch.nn.grad.conv2d_input(shape, weight, gradient, **self._options)

        return _Product.apply(x, self._read, lambda x, w, b: F.conv2d(x, w, b, **self._options), back)


def _linear_back(gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    return gradient @ weight


class _Product(torch.autograd.Function):
    """A product whose weight is read again in the backward pass instead of being saved."""

    @staticmethod
    def forward(ctx, x: Tensor, read: Callable, product: Callable, back: Callable) -> Tensor:
        ctx.read, ctx.back, ctx.shape = read, back, x.shape
        return product(x, *read(x))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        return ctx.back(gradient, ctx.read(gradient)[0], ctx.shape), None, None, None
