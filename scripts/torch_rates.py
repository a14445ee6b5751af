#!/usr/bin/env python3
"""Images a second of ResNet-50 by PyTorch, in fp32 without TF32 and in AMP, beside cnnscope's (tests/bench_device.c).

    scripts/torch_rates.py [--small]      lines for gpu-check.csv: what, size, unit, rate, (no bound)

Whole batches of 64 images of 224 x 224, from pinned bytes on the host to logits on the host; random weights; "saliency" with
the gradient of the predicted logit with respect to the input. On the GPU where there is one. --small: a size that ends soon
on a CPU.
"""

from __future__ import annotations

import sys
import time

import torch
import torchvision

SMALL = "--small" in sys.argv[1:]
BATCH, SIDE, LEAST_SECONDS = (1, 64, 0.0) if SMALL else (64, 224, 3.0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def batch(model: torch.nn.Module, pixels: torch.Tensor, amp: bool, saliency: bool) -> torch.Tensor:
    x = pixels.to(DEVICE, non_blocking=True).float().div_(255).sub_(0.5).div_(0.5).requires_grad_(saliency)
    with torch.autocast(DEVICE, torch.float16 if DEVICE == "cuda" else torch.bfloat16, enabled=amp):
        logits = model(x)
    if saliency:
        logits.float().amax(1).sum().backward()
    return logits.detach().float().cpu()


def rate(model: torch.nn.Module, pixels: torch.Tensor, amp: bool, saliency: bool) -> float:
    """Of whole batches, after one that prepares."""
    with torch.set_grad_enabled(saliency):
        batch(model, pixels, amp, saliency)
        start, times = time.perf_counter(), 0
        while times == 0 or time.perf_counter() - start < LEAST_SECONDS:
            batch(model, pixels, amp, saliency)
            times += 1
        return BATCH * times / (time.perf_counter() - start)


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = torchvision.models.resnet50(weights=None).eval().to(DEVICE).requires_grad_(False)
    pixels = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)
    pixels = pixels.pin_memory() if DEVICE == "cuda" else pixels
    for saliency in (False, True):
        for amp in (False, True):
            what = f"PyTorch {torch.__version__} ResNet-50 {'AMP' if amp else 'fp32'}{' with saliency' if saliency else ''}"
            print(f"{what},batch {BATCH} of {SIDE} x {SIDE} on {DEVICE},images/s,"
                  f"{rate(model, pixels, amp, saliency):.4g},", flush=True)


if __name__ == "__main__":
    main()
