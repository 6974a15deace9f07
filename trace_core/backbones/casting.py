"""Training on weights that PyTorch cannot calculate with: float8, quantised tensors, GGUF.

The base model keeps its bytes. Each layer's weight is dequantised where it is needed, once on the way there
and once again on the way back, so that never more than one layer stands in full precision; the gradient goes
through the product as if the weight were plain.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from .weights import is_linear, is_plain, shape_of, storage_of


def needs_cast(module: nn.Module) -> bool:
    """Whether a layer's weight or bias is in a form without products, or without gradients."""
    if not is_linear(module) and not isinstance(module, nn.Conv2d):
        return False
    return module.weight is not None and not (is_plain(module.weight) and is_plain(module.bias))


def weight_and_bias(engine, module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Dequantised, in ``like``'s type and on its device, with the patches that ComfyUI has put on the layer.

    Args:
        engine: the ``comfy`` package.
        module: GGUF layers have a ``cast_bias_weight`` of their own; ComfyUI's scaled and quantised ones a
            ``convert_weight``.
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
    """One layer of each kind and format, dequantised where training will do it.

    Raises:
        ModelError: naming the layer and its format, if the engine cannot.
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
                found = weight_and_bias(engine, module, torch.zeros(1, device=device))[0]
            problem = (
                None
                if found.shape == shape and is_plain(found)
                else f"it gives {found.dtype} {tuple(found.shape)}"
            )
        except Exception as error:  # whatever a format's own code runs into
            problem = str(error)
        if problem:
            raise ModelError(
                f"{name} is stored as {storage_of(module.weight)}, which this ComfyUI cannot train here "
                f"({problem}); load the fp16, bf16 or fp8 file of this model"
            )


def install(engine, network: nn.Module) -> int:
    """Put a :class:`CastLinear` or :class:`CastConv` around every layer that :func:`needs_cast`; returns how
    many.

    Whoever takes them off again puts the network's own modules back.
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
    """What both kinds share: the layer itself is a child, its weight is shown to nobody."""

    def _surround(self, engine, layer: nn.Module) -> None:
        nn.Module.__init__(self)
        self.layer, self.training = layer, layer.training
        self._engine = engine

    def _read(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        return weight_and_bias(self._engine, self.layer, like)

    @property
    def weight(self) -> Tensor:
        """A stand-in that says device and shape and holds one number: PEFT makes its adapters by it, in
        float32.
        """
        return torch.zeros((), device=self.layer.weight.device).expand(self._shape)

    @property
    def bias(self) -> None:
        return None


class CastLinear(_CastsWeights, nn.Linear):
    """A linear layer around one whose weight is cast; PEFT takes it for a plain ``nn.Linear``."""

    def __init__(self, engine, layer: nn.Module):
        self._surround(engine, layer)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._shape = shape_of(layer)

    def forward(self, x: Tensor) -> Tensor:
        smoothing = getattr(self.layer, "pre_quant_scale", None)  # ModelOpt's AWQ, on nvfp4 files
        if smoothing is not None:
            x = x * smoothing.detach().to(x.device, x.dtype)
        rows = _Product.apply(x.reshape(-1, x.shape[-1]), self._read, F.linear, _linear_back)
        # out here: a view from inside could not be written into
        return rows.view(*x.shape[:-1], self.out_features)


class CastConv(_CastsWeights, nn.Module):
    """A convolution around one whose weight is cast."""

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
    """A product with a weight that is read twice instead of kept."""

    @staticmethod
    def forward(ctx, x: Tensor, read: Callable, product: Callable, back: Callable) -> Tensor:
        ctx.read, ctx.back, ctx.shape = read, back, x.shape
        return product(x, *read(x))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        return ctx.back(gradient, ctx.read(gradient)[0], ctx.shape), None, None, None
