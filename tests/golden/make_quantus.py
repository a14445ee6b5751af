#!/usr/bin/env python3
"""Write quantus_mnist.npz: Quantus' measures of attribution maps of 100 MNIST images, by the shipped model.

Maps: saliency (largest absolute gradient of the predicted category's logit; one channel) and occlusion's stand-in, the
signed gradient, both by PyTorch in float32. Of each: `deletion` by PixelFlipping (28 pixels at a time, in place of them the
network's input 0; softmax; the mean of the curve by the trapezoidal rule, from the whole image on), `sparseness` by
Sparseness, `pointing` by PointingGame and `energy` by RelevanceMassAccuracy, in masks of the pixels above 100.

    make_quantus.py MNIST-IMAGES.gz      (PyTorch, quantus; not part of the tests)
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import quantus
import torch

import make
import make_onnx

HERE = Path(__file__).parent
IMAGES, STEP = 100, 28


def main() -> None:
    pixels = np.frombuffer(gzip.open(sys.argv[1]).read(), np.uint8)[16:].reshape(-1, 1, 28, 28)[:IMAGES]
    net = make_onnx.Notebook(torch.load(HERE.parent / "data" / "model.pth")).eval()
    x = torch.from_numpy(pixels / np.float32(255)).requires_grad_()
    logits = net(x)
    target = logits.argmax(1)
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), x)
    common = {"x_batch": x.detach().numpy(), "y_batch": target.numpy(), "model": net, "device": "cpu"}
    masks = pixels > 100
    quiet = {"disable_warnings": True, "abs": False, "normalise": False}
    result = {"target": target.numpy().astype(np.int32)}
    first = torch.softmax(logits, 1).gather(1, target[:, None])[:, 0].detach().numpy()
    for name, maps in (("saliency", gradient.abs()), ("saliency_signed", gradient)):
        a = maps.numpy()
        curves = np.array(quantus.PixelFlipping(features_in_step=STEP, perturb_baseline=0.0, **quiet)(
            a_batch=a, softmax=True, **common))
        curves = np.concatenate([first[:, None], curves], 1)
        result[f"{name}.deletion"] = ((curves[:, 1:] + curves[:, :-1]) / 2).mean(1)
        result[f"{name}.sparseness"] = quantus.Sparseness(**(quiet | {"abs": True}))(a_batch=a, **common)
        result[f"{name}.pointing"] = quantus.PointingGame(**quiet)(a_batch=a, s_batch=masks, **common)
        positive = np.maximum(a, 0)
        result[f"{name}.energy"] = quantus.RelevanceMassAccuracy(**quiet)(a_batch=positive, s_batch=masks, **common)
    result = {k: np.asarray(v, np.float32) for k, v in result.items()}
    make.save(HERE / "quantus_mnist.npz", result)
    print({k: (v.shape, float(np.nanmean(v))) for k, v in result.items()})


if __name__ == "__main__":
    main()
