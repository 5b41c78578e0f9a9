"""Samplers of the rectified flow x_t = t * x1 + (1 - t) * x0, whose velocity is x1 - x0: t runs from 0 (noise) to 1."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput


class OmniGen2FlowMatchScheduler(SchedulerMixin, ConfigMixin):
    """Euler steps over the times k / N, shifted towards noise for large images.

    Args:
        num_train_timesteps: kept for the published config; times are in [0, 1] here.
        dynamic_time_shift: shift the times by the size of the image, t <- t / (m - m t + t), m = sqrt(num_tokens) / 40.
    """

    order = 1
    config: Any  # a frozen dict that also reads as attributes

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, dynamic_time_shift: bool = True) -> None:
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self._set(torch.linspace(0, 1, num_train_timesteps + 1)[:-1])

    @property
    def step_index(self) -> int | None:
        """Number of the step to take next, or None before the first."""
        return self._step_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | torch.Tensor | None = None,
        num_tokens: int | None = None,
    ) -> None:
        """Fix the times of the steps; afterwards `timesteps` holds them, float32 [num_inference_steps], from 0 upwards.

        Args:
            num_inference_steps: number of steps N, in place of `timesteps`.
            device: where `timesteps` goes.
            timesteps: times of one's own, strictly increasing in [0, 1), taken as they are.
            num_tokens: height * width of the latent (positions, not patches), for the shift; None leaves it out.

        Raises:
            ValueError: unless exactly one of num_inference_steps (at least 1) and valid timesteps is given.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(
                f"num_inference_steps = {num_inference_steps} and timesteps = {timesteps}: give exactly one of them"
            )
        if timesteps is not None:
            times = torch.as_tensor(timesteps, dtype=torch.float32).cpu()
            if times.ndim != 1 or not len(times) or times[0] < 0 or times[-1] >= 1 or (times.diff() <= 0).any():
                raise ValueError(f"timesteps = {times.tolist()} must increase strictly within [0, 1)")
        else:
            if num_inference_steps is None or num_inference_steps < 1:
                raise ValueError(f"num_inference_steps = {num_inference_steps} must be at least 1")
            times = torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps
            if self.config.dynamic_time_shift and num_tokens is not None:
                shift = num_tokens**0.5 / 40
                times = times / (shift - shift * times + times)
        self._set(times.float(), device)
        self.num_inference_steps = len(times)

    def _set(self, times: torch.Tensor, device: torch.device | str | None = None) -> None:
        # kept on the CPU as Python numbers too, so that no step waits for an accelerator
        self._times = [*times.tolist(), 1.0]
        self.timesteps = times.to(device)
        self._step_index: int | None = None

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """The sample as it is; other schedulers scale here."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Move the sample from this time to the next one (after the last: to t = 1).

        Args:
            model_output: velocity, any shape.
            timestep: the time of the sample, one of `timesteps`; read at the first step, later steps follow in order.
            sample: of the same shape.
            return_dict: False returns a tuple of one.

        Returns:
            `prev_sample` in the dtype of the sample.

        Raises:
            ValueError: before set_timesteps, after the last step, or for a time that is not among `timesteps`.
        """
        if self.num_inference_steps is None:
            raise ValueError("step was called before set_timesteps: call set_timesteps(num_inference_steps) first")
        if self._step_index is None:
            self._step_index = self._index_of(float(timestep))
        if self._step_index >= self.num_inference_steps:
            raise ValueError(f"all {self.num_inference_steps} steps are taken: call set_timesteps to start again")
        moved = self._advance(model_output.float(), sample.float(), self._step_index)
        self._step_index += 1
        prev_sample = moved.to(sample.dtype)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def _advance(self, velocity: torch.Tensor, sample: torch.Tensor, index: int) -> torch.Tensor:
        return sample + (self._times[index + 1] - self._times[index]) * velocity

    def _index_of(self, time: float) -> int:
        index = min(range(len(self._times) - 1), key=lambda k: abs(self._times[k] - time))
        if abs(self._times[index] - time) > 1e-3:
            raise ValueError(f"timestep = {time} is none of the {len(self._times) - 1} timesteps of this scheduler")
        return index

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


class OmniGen2DPMSolverScheduler(OmniGen2FlowMatchScheduler):
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2) on the same times.

    With alpha = t and sigma = 1 - t, the data prediction is x_t + (1 - t) * velocity and the solver works in
    lambda = log(alpha / sigma). lambda is infinite at both ends; there the method falls back to its first order, as it
    does in any case for the first and the last step.
    """

    def _set(self, times: torch.Tensor, device: torch.device | str | None = None) -> None:
        super()._set(times, device)
        self._last_data: torch.Tensor | None = None

    def _advance(self, velocity: torch.Tensor, sample: torch.Tensor, index: int) -> torch.Tensor:
        now, after = self._times[index], self._times[index + 1]
        data = sample + (1 - now) * velocity
        direction = data
        if self._last_data is not None and self._times[index - 1] > 0 and after < 1:
            ratio = (_log_snr(after) - _log_snr(now)) / (_log_snr(now) - _log_snr(self._times[index - 1]))
            direction = data + 0.5 * ratio * (data - self._last_data)
        self._last_data = data
        remaining = (1 - after) / (1 - now)
        # alpha_after * (1 - exp(-h)), written without the logarithms so that it holds at t = 0 and t = 1
        return remaining * sample + (after - remaining * now) * direction


def _log_snr(time: float) -> float:
    return float(torch.tensor(time, dtype=torch.float64).logit())
