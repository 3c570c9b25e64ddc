"""Adam, AdamW and RAdam, whose state lies on the device or in host memory.

Sources: Kingma and Ba 2015, "Adam"; Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization" (AdamW); Liu et
al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond" (RAdam); the state in host memory is an idea of Ren
et al. 2021, "ZeRO-Offload". All of them work in place with torch's fused step, which needs no memory of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Adam(torch.optim.AdamW):
    """AdamW; Adam if the weight decay is 0. Its state is two moments of each parameter and the number of its steps.

    The state lies on the device or, from `keep_state` on, in host memory. In host memory each step brings the state of
    one parameter at a time to the device and takes it back, so that the weights come out the same to the last bit.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr=0.0, weight_decay=weight_decay, fused=True)
        self.on_host = False

    def keep_state(self, on_host: bool) -> None:
        """Keep the state in host memory, or on the device, from now on."""
        if on_host == self.on_host:
            return
        moved = {
            parameter: {kind: self._room(parameter, held, on_host).copy_(held) for kind, held in state.items()}
            for parameter, state in self.state.items()
        }
        self.state.update(moved)  # all at once, in case the device has no room for it
        self.on_host = on_host

    def load(self, parameter: nn.Parameter, kind: str, values: Tensor) -> None:
        """Set a part of a parameter's state, such as `exp_avg`, to values that were stored."""
        like = parameter.detach() if values.ndim else values
        self.state[parameter][kind] = self._room(parameter, like, self.on_host).copy_(values)

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step; `closure` is not used. It fails for want of memory before anything is changed, or not at all."""
        if self.on_host:
            self._step_from_host()
        else:
            self._update()

    @torch.no_grad()
    def _step_from_host(self) -> None:
        (group,) = self.param_groups
        parameters: list[nn.Parameter] = group["params"]
        for parameter in parameters:
            if parameter not in self.state:
                number = torch.zeros((), dtype=torch.float32)
                like = {"step": number, "exp_avg": parameter, "exp_avg_sq": parameter}
                self.state[parameter] = {kind: self._room(parameter, each, True).zero_() for kind, each in like.items()}
        largest = max(parameters, key=Tensor.numel)
        room = {kind: largest.new_empty(held.numel()) for kind, held in self.state[largest].items()}
        for parameter in parameters:
            held = self.state[parameter]
            try:
                self.state[parameter] = {
                    kind: room[kind].as_strided(each.shape, each.stride()).copy_(each) for kind, each in held.items()
                }
                group["params"] = [parameter]
                self._update()
                for kind, each in self.state[parameter].items():
                    held[kind].copy_(each)
            finally:
                self.state[parameter], group["params"] = held, parameters

    def _update(self) -> None:
        """Change the group's parameters; their state is on the device."""
        super().step()

    @staticmethod
    def _room(parameter: Tensor, like: Tensor, on_host: bool) -> Tensor:
        """An empty tensor for a part of the state; in host memory a card copies page-locked memory fastest."""
        if on_host:
            return torch.empty_like(like, device="cpu", pin_memory=parameter.is_cuda)
        return torch.empty_like(like, device=parameter.device)


LEAST_LENGTH = 5.0
"""RAdam's threshold of ρ: up to it, which is for five steps, it steps along the first moment alone."""


class RAdam(Adam):
    """RAdam with decoupled weight decay: Adam whose learning rate is multiplied by a factor that rises towards 1.

    It differs from `torch.optim.RAdam` in that ε is added to the corrected second moment, as in Adam.
    """

    @torch.no_grad()
    def _update(self) -> None:
        (group,) = self.param_groups
        rate, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        state = self.state.get(group["params"][0], {})
        number = 1 + float(state.get("step", 0.0))
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * number * beta2**number / (1 - beta2**number)
        factor = 0.0
        if length > LEAST_LENGTH:
            share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            factor = math.sqrt(share)
        # Without a factor this step of Adam moves the moments alone.
        group["lr"], group["weight_decay"] = rate * factor, decay / factor if factor else 0.0
        try:
            super()._update()
        finally:
            group["lr"], group["weight_decay"] = rate, decay
        if not factor:
            for parameter in group["params"]:
                moment = self.state[parameter]["exp_avg"]
                parameter.mul_(1 - rate * decay).add_(moment, alpha=-rate / (1 - beta1**number))


OPTIMIZERS: dict[str, type[Adam]] = {"adam": Adam, "radam": RAdam}
"""The values of `--optimizer`."""
