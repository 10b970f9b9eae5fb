"""`export`: a file for another runtime, compared with the network."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..errors import SettingError
from ..preprocessing import read_values
from ..recipe import RECIPE_FILE
from .command import Command, add_calibration, add_level


def add_arguments(parser: ArgumentParser) -> None:
    """Add what to export, where to, and for which inputs."""
    parser.add_argument("source", type=Path, help="run folder of compress, or what nni_sparsevd.load opens")
    parser.add_argument("--to", type=Path, required=True, help="file to write; its suffix says the format")
    add_level(parser)
    parser.add_argument("--input", type=list[int], help="shape of one input, e.g. [3,224,224]; a run folder knows it")
    parser.add_argument(
        "--fixed_batch", action="store_true", help="batches of one only; .pte and .tflite have no others"
    )
    parser.add_argument(
        "--int8", action="store_true", help="integers of eight bits, for .onnx, .pte and .tflite of a run folder"
    )
    add_calibration(parser)


def run(arguments: Namespace, command_line: list[str]) -> None:
    """Export a run's small network, or any network that `load` opens, and print the comparison."""
    import torch

    from ..export import export
    from ..loading import load
    from ..results import export_run

    dynamic_batch = not arguments.fixed_batch
    if (arguments.source / RECIPE_FILE).exists():
        exported = export_run(
            arguments.source,
            arguments.to,
            level=arguments.level,
            dynamic_batch=dynamic_batch,
            int8=arguments.int8,
            calibration=arguments.calibration,
        )
        print(exported)
        return
    if arguments.level is not None:
        raise SettingError(f"--level={arguments.level:g}: {arguments.source} is no run folder")
    if arguments.int8:
        raise SettingError(
            f"--int8: {arguments.source} is no run folder, so there are no photos to measure ranges on; in Python: "
            "export(..., quantization=Quantization(inputs))"
        )
    model = load(arguments.source)
    shape = arguments.input or read_values(model).get("input_size")
    if not shape:
        raise SettingError(f"--input: {arguments.source} does not say the shape of an input; give it, e.g. [3,224,224]")
    print(export(model, arguments.to, torch.zeros(1, *shape), dynamic_batch=dynamic_batch))


EXPORT = Command(
    name="export",
    summary="a file for another runtime, compared with the network",
    description=(
        "Write a network for another runtime, run the file there and compare: .onnx, .pt2 (torch.export), "
        ".pte (ExecuTorch), .tflite (LiteRT)."
    ),
    add_arguments=add_arguments,
    run=run,
)
