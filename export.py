"""Exports the trained arms of one fold as one model: HU in, probabilities out.

python export.py --fold 0 --out exported/hybrid
python export.py --arms efficientnetb3 --out exported/efficientnetb3
"""

import argparse
import sys
from pathlib import Path

from ich_keras.command import import_keras, start, take_tensorflow
from ich_keras.errors import report
from ich_keras.training.export_runs import check_output, export_runs, runs_to_export
from ich_keras.training.options import add_arms_argument, add_data_arguments, parse_fold


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_data_arguments(command)
    add_arms_argument(command)
    command.add_argument(
        "--fold", type=parse_fold, default=0, metavar="K", help="fold (default: %(default)s)"
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("exported/hybrid"),
        metavar="DIR",
        help="folder to write: the model and metadata.json (default: %(default)s)",
    )
    command.add_argument(
        "--format",
        choices=("saved_model", "openvino", "onnx"),
        default="saved_model",
        help="what the engine reads; onnx needs requirements-onnx.txt (default: %(default)s)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace what is there")
    return command


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    start()
    take_tensorflow("export.py")
    check_output(options.out, options.overwrite)
    used = runs_to_export(options.runs, options.protocol, options.arms, options.fold)
    import_keras()
    export_runs(used, options.out, options.format, options.data)
    print(f"Written to {options.out}: {', '.join(sorted(path.name for path in options.out.iterdir()))}")


if __name__ == "__main__":
    sys.exit(report(lambda: main(sys.argv[1:])))
