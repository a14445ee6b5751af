#!/usr/bin/env python3
"""Write captum/NAME.onnx: networks that captum's own tests are made with (tests/helpers/basic_models.py there), whose
attributions are known as numbers; tests/test_attribution_laws.py holds those.

one_conv: BasicModel_ConvNet_One_Conv. multi_layer: BasicModel_MultiLayer, of images 1 x 1 x 3. paper_one, paper_two: the
same function of (x1, x2), written in two ways (BasicModel2, BasicModel3; Sundararajan et al. 2017), of images 1 x 1 x 2.

    make_captum.py      (onnx, numpy; not part of the tests)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

HERE = Path(__file__).parent / "captum"


def write(name: str, image: tuple[int, int, int], layers: list[tuple], outputs: int) -> None:
    """Layers: (name, "Conv" or "Gemm", weight, bias), (name, "Relu"), (name, "Flatten")."""
    nodes, constants, value = [], [], "input"
    for layer, kind, *arrays in layers:
        names = [f"{layer}.weight", f"{layer}.bias"][: len(arrays)]
        constants += [numpy_helper.from_array(np.asarray(a, np.float32), n) for a, n in zip(arrays, names)]
        more = {"transB": 1} if kind == "Gemm" else {}
        nodes.append(helper.make_node(kind, [value, *names], [layer], name=layer, **more))
        value = layer
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", *shape])
             for n, shape in (("input", image), (value, (outputs,)))]
    graph = helper.make_graph(nodes, name, ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, HERE / f"{name}.onnx")


def main() -> None:
    HERE.mkdir(exist_ok=True)
    mixed = np.concatenate([np.ones((4, 5)), -np.ones((4, 3))], 1)
    write("one_conv", (1, 4, 4), [("conv1", "Conv", np.ones((2, 1, 3, 3)), [-50, -75]), ("relu1", "Relu"),
                                  ("flat", "Flatten"), ("fc1", "Gemm", mixed, np.zeros(4)), ("relu2", "Relu")], 4)
    write("multi_layer", (1, 1, 3), [("flat", "Flatten"), ("linear0", "Gemm", np.eye(3), np.zeros(3)),
                                     ("linear1", "Gemm", np.ones((4, 3)), [-10, 1, 1, 1]), ("relu", "Relu"),
                                     ("linear2", "Gemm", np.ones((2, 4)), [-1, 1])], 2)
    write("paper_one", (1, 1, 2), [("flat", "Flatten"), ("relu1", "Relu"), ("less", "Gemm", [[1, -1]], [-1]),
                                   ("relu2", "Relu")], 1)
    write("paper_two", (1, 1, 2), [("flat", "Flatten"), ("shift", "Gemm", np.eye(2), [-1, 0]), ("relu1", "Relu"),
                                   ("less", "Gemm", [[1, -1]], [0]), ("relu2", "Relu")], 1)


if __name__ == "__main__":
    main()
