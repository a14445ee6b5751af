#!/usr/bin/env python3
"""Export a PyTorch model to ONNX for cnnscope, and check the file against the model.

    export_onnx.py MODULE:CLASS --weights model.pth --input 1,28,28 -o model.onnx
    export_onnx.py FILE.py:CLASS --args "num_classes=100" --weights checkpoint.pth --input 3,224,224 -o model.onnx

CLASS is called with --args and gives the model (a class, or a function such as torchvision.models:resnet18). The
weights are a state_dict, or a checkpoint that holds one; "module." of DataParallel is taken off. In eval mode, with
parameters under their own names, batch norm as a node of its own (cnnscope shows the layers before and after it), and
a free batch dimension. FILE.onnx appears only when onnxruntime, where it is installed, gives what PyTorch gives.

Needs PyTorch and onnx, and onnxscript for --exporter dynamo.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import python_object

try:
    import onnx
    import torch
except ImportError as missing:
    sys.exit(f"export_onnx.py: {missing}; run it with the Python of your model: pip install torch onnx onnxscript")

TOLERANCE = 1e-4  # of the largest value; rounding makes some 1e-6
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model", "net", "weights")


def main() -> None:
    options = parse_arguments()
    try:
        write(options)
    except (ValueError, OSError) as error:
        sys.exit(f"export_onnx.py: {error}")


def parse_arguments() -> argparse.Namespace:
    def sizes(text: str) -> list[int]:
        numbers = [int(n) if n.strip().isdecimal() else 0 for n in text.split(",")]
        if min(numbers) < 1 or len(numbers) > 4:
            raise argparse.ArgumentTypeError(f"{text}: expected one sample's sizes, as 1,28,28")
        return numbers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODULE:CLASS")
    parser.add_argument("--args", default="", help="arguments of CLASS, as \"1, num_classes=10\"")
    parser.add_argument("--weights", type=Path, help=".pth with a state_dict; without: as CLASS makes it")
    parser.add_argument("--input", type=sizes, required=True, metavar="C,H,W", help="one sample, without the batch")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.onnx")
    parser.add_argument("--exporter", choices=("script", "dynamo"), default="script",
                        help="PyTorch's TorchScript exporter (default) or the one by torch.export")
    parser.add_argument("--opset", type=int, help="default: 17 for script, 18 for dynamo")
    parser.add_argument("--fixed-batch", type=int, metavar="N", help="for models that work on one batch size only")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing FILE.onnx")
    return parser.parse_args()


def write(options: argparse.Namespace) -> None:
    if options.output.exists() and not options.overwrite:
        raise ValueError(f"{options.output}: exists; give another name or --overwrite")
    model = load(options)
    torch.manual_seed(0)
    batch = options.fixed_batch or 2  # 2: a size of 1 could be taken for a constant
    example = torch.randn(batch, *options.input)
    with torch.no_grad():
        result = model(example)
    if not isinstance(result, torch.Tensor):
        raise ValueError(f"{options.model}: gives a {type(result).__name__}, expected one tensor of logits; wrap it in "
                         "a module that returns the logits alone")
    partial = options.output.with_name(options.output.name + ".partial")
    try:
        export(model, example, partial, options)
        check(model, partial, options)
        report(model, partial, options)
        os.replace(partial, options.output)
    finally:
        partial.unlink(missing_ok=True)
    shape = "x".join(map(str, options.input))
    print(f"{options.output}: input {shape}, {result.shape[1:].numel()} outputs. Next:")
    print(f"cnnscope inspect --model {shlex.quote(str(options.output))}")
    print(f"cnnscope --model {shlex.quote(str(options.output))} --images IMAGES.nc:image --labels IMAGES.nc:label "
          "--output RESULT.nc   # and --mean, --std as in training")


def load(options: argparse.Namespace) -> torch.nn.Module:
    """The model in eval mode with its weights."""
    positional, named = python_object.arguments(options.args)
    maker = python_object.find(options.model)
    if not callable(maker):
        raise ValueError(f"{options.model}: is not a class or function")
    try:
        model = maker if isinstance(maker, torch.nn.Module) else maker(*positional, **named)
    except TypeError as error:
        raise ValueError(f"{options.model}: {error}; see --args") from error
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"{options.model}: gives a {type(model).__name__}, expected a torch.nn.Module")
    if options.weights:
        state = read_state(options.weights)
        known = model.state_dict()
        wrong = [f"lacks {k}" for k in known if k not in state] + [f"has {k} besides" for k in state if k not in known]
        wrong += [f"has {k} of {tuple(state[k].shape)}, the model's is {tuple(known[k].shape)}"
                  for k in known if k in state and state[k].shape != known[k].shape]
        if wrong:
            raise ValueError(f"{options.weights}: does not fit {options.model}: it {wrong[0]}"
                             + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "") + "; see --args")
        model.load_state_dict(state)
    else:
        print("export_onnx.py: no --weights: the model as its class makes it", file=sys.stderr)
    return model.eval()


def read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001: whatever a damaged or foreign file makes torch raise
        raise ValueError(f"{path}: is no state_dict that loads without running code "
                         f"({str(error).splitlines()[0]}); write it by torch.save(model.state_dict(), ...)") from error
    for key in CHECKPOINT_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path}: holds no state_dict; write it by torch.save(model.state_dict(), ...)")
    for prefix in PREFIXES:
        if all(k.startswith(prefix) for k in state):
            state = {k[len(prefix):]: v for k, v in state.items()}
    return state


def export(model: torch.nn.Module, example: torch.Tensor, path: Path, options: argparse.Namespace) -> None:
    """Written by the exporter asked for, in silence: of what it prints only the error is kept."""
    free = not options.fixed_batch
    common = {"input_names": ["input"], "output_names": ["logits"]}
    if options.exporter == "script":
        # PRESERVE with a model in eval mode: the arithmetic of eval, but batch norm stays a node.
        common |= {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False,
                   "opset_version": options.opset or 17,
                   "dynamic_axes": {"input": {0: "batch"}, "logits": {0: "batch"}} if free else None}
    else:
        # optimize would fold batch norm into the convolutions.
        common |= {"dynamo": True, "optimize": False, "external_data": False, "opset_version": options.opset or 18,
                   "dynamic_shapes": ({0: torch.export.Dim("batch")},) if free else None}
    try:
        with warnings.catch_warnings(), silence(), global_average_as_mean():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (example,), str(path), **common)
    except Exception as error:  # noqa: BLE001: the exporters raise many kinds
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        hint = "" if options.fixed_batch else "; try the other --exporter, or --fixed-batch 2"
        who = f"PyTorch's {options.exporter} exporter"
        raise ValueError(f"{options.model}: {who} refused it: {lines[0]}{hint}") from error
    own_names(path)
    if options.exporter == "dynamo":
        fold_shapes(path, set(model.state_dict()))


@contextlib.contextmanager
def global_average_as_mean() -> Iterator[None]:
    """What it is; where channels come last (ConvNeXt) the dynamo exporter would add as_strided, which becomes a Gather
    over the whole batch."""
    pool = torch.nn.functional.adaptive_avg_pool2d

    def mean(images: torch.Tensor, output_size: int | tuple[int, int]) -> torch.Tensor:
        one = images.dim() == 4 and output_size in (1, (1, 1)) and torch.compiler.is_exporting()
        return images.mean((-2, -1), keepdim=True) if one else pool(images, output_size)

    torch.nn.functional.adaptive_avg_pool2d = mean
    try:
        yield
    finally:
        torch.nn.functional.adaptive_avg_pool2d = pool


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing reaches stdout and stderr, from C++ neither."""
    sys.stdout.flush()
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for handle, copy in enumerate(kept, start=1):
            os.dup2(copy, handle)
            os.close(copy)
        os.close(nowhere)


def own_names(path: Path) -> None:
    """The script exporter stores equal tensors once, the others as Identity of it: each gets its own copy back."""
    model = onnx.load(path)
    graph = model.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    copies = [node for node in graph.node if node.op_type == "Identity" and node.input[0] in known]
    results = {value.name for value in graph.output}
    for node in copies:
        if node.output[0] not in results:
            tensor = graph.initializer.add()
            tensor.CopyFrom(known[node.input[0]])
            tensor.name = node.output[0]
            graph.node.remove(node)
    if copies:
        onnx.save(model, path)


def fold_shapes(path: Path, parameters: set[str]) -> None:
    """The dynamo exporter computes constants in the graph, unless optimised, which folds batch norm away: only these
    constants are folded here, and nothing that is made from the values of a parameter."""
    from onnxscript import ir, optimizer  # the exporter itself needs it

    def should_fold(node: ir.Node) -> bool | None:
        made_of = {value.name for value in node.inputs if value is not None}
        return False if node.op_type != "Shape" and made_of & parameters else None

    model = ir.load(path)
    optimizer.fold_constants(model, should_fold=should_fold)
    optimizer.remove_unused_nodes(model)
    ir.save(model, path)


def report(model: torch.nn.Module, path: Path, options: argparse.Namespace) -> None:
    """One line on what the file holds, and one for each way in which it is not what cnnscope shows best."""
    graph = onnx.load(path).graph
    counts = Counter(node.op_type for node in graph.node)
    print(f"{options.output}: " + ", ".join(f"{n} {op}" for op, n in sorted(counts.items())))
    kept = {tensor.name for tensor in graph.initializer}
    lost = [name for name, _ in model.named_parameters() if name not in kept]
    if lost:
        print(f"export_onnx.py: {len(lost)} parameters lost their names, as {lost[0]}: their layers will have the "
              "names of nodes", file=sys.stderr)
    norms = sum(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
    found = counts["BatchNormalization"]
    if found < norms:
        print(f"export_onnx.py: PyTorch folded or rewrote {norms - found} of {norms} batch norms; try the other "
              "--exporter", file=sys.stderr)


def check(model: torch.nn.Module, path: Path, options: argparse.Namespace) -> None:
    """The file by onnxruntime against the model by PyTorch, on images and a batch size the exporter has not seen."""
    onnx.checker.check_model(str(path))
    try:
        import onnxruntime
    except ImportError:
        print("export_onnx.py: result not checked: pip install onnxruntime", file=sys.stderr)
        return
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name, worst = session.get_inputs()[0].name, 0.0
    for batch in [options.fixed_batch] if options.fixed_batch else [1, 3]:
        images = torch.randn(batch, *options.input, generator=torch.Generator().manual_seed(batch))
        try:
            with torch.no_grad():
                expected = model(images)
            got = torch.from_numpy(session.run(None, {name: images.numpy()})[0])
        except Exception as error:  # noqa: BLE001: whatever the model or onnxruntime raises
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{options.model}: fails on a batch of {batch} ({why}); try the other --exporter, or "
                             "--fixed-batch 2 if it works on one batch size only") from error
        if got.shape != expected.shape or len(got) != batch:
            raise ValueError(f"{options.model}: a batch of {batch} gives {tuple(got.shape)} by onnxruntime, "
                             f"{tuple(expected.shape)} by PyTorch; try the other --exporter, or --fixed-batch 2 if it "
                             "works on one batch size only")
        worst = max(worst, ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item())
    if not worst <= TOLERANCE:  # or not a number
        raise ValueError(f"{options.output}: onnxruntime differs from PyTorch by {worst:.1e} of the largest value; try "
                         "the other --exporter")
    print(f"{options.output}: onnxruntime gives PyTorch's result to {worst:.1e} of the largest value")


if __name__ == "__main__":
    main()
