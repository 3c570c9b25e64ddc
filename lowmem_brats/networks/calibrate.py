"""Give a fresh network without norms the statistics that norms would give it, once, from real slices.

After that its convolutions are trained like any other weights. A network without norms computes a pixel from its
surroundings alone: a part of a slice gives what the whole slice gives, a batch what each of its slices gives.
Source: Mishkin, Matas 2016, "All you need is a good init", section 3, which scales each layer's output to unit
variance; here each channel's, and its mean becomes 0, as batch norm would have it.
Shape suffixes: N slices, C channels, H W in-plane.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowmem_brats.networks.base import SliceNetwork

LEAST = 1e-3
"""Smallest standard deviation that is divided by, so that a channel that is nearly constant is not blown up."""


def calibrate(network: SliceNetwork, slices_NCHW: Tensor) -> None:
    """Scale and shift `network.convolutions()`, in place, until their outputs have mean 0 and deviation 1 per channel.

    `network`: fp32 on the host, fresh; `slices_NCHW`: fp32, as many different slices as training takes in a few steps.
    Does nothing to a network whose convolutions are all followed by norms.
    """
    handles = [layer.register_forward_hook(_standardise) for layer in network.convolutions()]
    try:
        with torch.no_grad():
            if handles:
                network(slices_NCHW)
    finally:
        for handle in handles:
            handle.remove()


def _standardise(layer: nn.Module, inputs: tuple[Tensor, ...], output_NCHW: Tensor) -> Tensor:
    """Change the layer so that its outputs are standardised, and return them: the layers after it see these."""
    deviation_C, mean_C = torch.std_mean(output_NCHW, dim=(0, 2, 3))
    deviation_C = deviation_C.clamp(min=LEAST)
    weight_oihw, bias_C = layer.parameters()
    weight_oihw.div_(deviation_C[:, None, None, None])
    bias_C.sub_(mean_C).div_(deviation_C)
    return (output_NCHW - mean_C[:, None, None]) / deviation_C[:, None, None]
