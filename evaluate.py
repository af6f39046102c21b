"""Evaluates trained arms and their hybrid on the paper's test sets, or anyone's predictions.

    python evaluate.py --test-set full
    python evaluate.py --test-set balanced --protocol patient
    python evaluate.py --arms tiny300,tiny299 --data data/phantoms
    python evaluate.py --predictions P.csv --labels L.csv --out DIR

Every fold for which the named arms have a run is used. Results go to
results/<protocol>/<arms>/<test set>/: report.html, report.md, metrics.json, predictions.csv.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from ich_keras.command import keras_backend, start
from ich_keras.errors import InputError, report
from ich_keras.labels import FOLDS, PROTOCOLS, TEST_SETS
from ich_keras.training.options import add_arms_argument, add_data_arguments, parse_fold_or_all


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    command.add_argument(
        "--test-set",
        choices=TEST_SETS,
        help="full: the test tenth; balanced: the paper's Test Dataset 2 (default for our runs: full)",
    )
    add_data_arguments(command)
    add_arms_argument(command)
    command.add_argument(
        "--fold",
        type=parse_fold_or_all,
        default="all",
        metavar="K|all",
        help="folds to use (default: %(default)s)",
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the results (default: results/<protocol>/<arms>/<test set>)",
    )
    command.add_argument(
        "--resamples",
        type=int,
        metavar="N",
        help="bootstrap resamples for intervals; 0 for none (default: 1000)",
    )
    others = command.add_argument_group("anyone's predictions, without TensorFlow")
    others.add_argument("--predictions", type=Path, metavar="CSV", help="id and six probabilities")
    others.add_argument("--labels", type=Path, metavar="CSV", help="id and six labels, or Kaggle's long form")
    others.add_argument(
        "--validation-predictions",
        type=Path,
        metavar="CSV",
        help="predictions of other slices, to fit operating points and calibration on",
    )
    others.add_argument(
        "--validation-labels",
        type=Path,
        metavar="CSV",
        help="their labels (default: they are in --labels too)",
    )
    return command


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    if options.resamples is not None and options.resamples < 0:
        raise InputError("bad-argument", f"--resamples must be 0 or more, received {options.resamples}.")
    start()
    if options.predictions or options.labels:
        if not (options.predictions and options.labels and options.out):
            raise InputError(
                "bad-argument",
                "--predictions, --labels and --out go together; give all three, or none of them to evaluate "
                "our runs.",
            )
        out = options.out
        document = _evaluate_files(options)
    else:
        keras_backend()
        test_set = options.test_set or "full"
        results = {name: Path("results") / name / "+".join(options.arms) / test_set for name in PROTOCOLS}
        out = options.out or results.pop(options.protocol)
        from ich_keras.training.test_set import evaluate_runs

        document = evaluate_runs(
            data=options.data,
            protocol=options.protocol,
            runs=options.runs,
            arms=options.arms,
            test_set=test_set,
            out=out,
            folds=range(FOLDS) if options.fold == "all" else [options.fold],
            other_protocol=None if options.out else next(iter(results.values())),
            **_resamples(options),
        )
    from ich_keras.evaluation.terminal import summary_table

    Console().print(summary_table(document))
    print(f"Written to {out}: report.html, report.md, metrics.json, predictions.csv")


def _evaluate_files(options: argparse.Namespace) -> dict:
    from ich_keras.evaluation.command import evaluate_files

    return evaluate_files(
        options.predictions,
        options.labels,
        options.out,
        test_set=options.test_set,
        validation_predictions=options.validation_predictions,
        validation_labels=options.validation_labels,
        **_resamples(options),
    )


def _resamples(options: argparse.Namespace) -> dict[str, int]:
    return {} if options.resamples is None else {"resamples": options.resamples}


if __name__ == "__main__":
    sys.exit(report(lambda: main(sys.argv[1:])))
