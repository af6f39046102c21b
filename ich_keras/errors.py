"""One family of errors, each with a reason code, and how a command reports them.

A message says what came, what was expected and what to do. No message holds a name, a date or
a raw identifier from a DICOM header.
"""

import sys
from collections.abc import Callable

EXIT_DONE = 0
EXIT_SOME_FAILED = 1
EXIT_IMPOSSIBLE = 2
EXIT_STOPPED = 75

REASONS = {
    # one DICOM file
    "not-a-file": "a folder, pipe or device stands where a file was expected",
    "unreadable-file": "the operating system refused to open or read the file",
    "not-dicom": "the file is not DICOM",
    "damaged-file": "the file is named like a slice or lies among slices, and is not DICOM",
    "truncated": "the file ends before its pixels do",
    "no-pixels": "the file holds no pixel data",
    "bad-header": "a header element that is needed is missing or makes no sense",
    "not-ct": "the file is not a CT image",
    "colour": "the image is in colour",
    "multi-frame": "the file holds more than one frame",
    "unsupported-transfer-syntax": "no decoder at hand reads this transfer syntax",
    "undecodable": "the compressed pixels could not be decoded",
    # a patient's scan
    "hidden-file": "the name begins with a dot, or is one of macOS's own in an archive",
    "linked-folder": "a symbolic link to a folder is not followed; name the folder itself",
    "unsafe-member": "an archive's member has a path that leads out of the archive",
    "nested-archive": "an archive in an archive is not opened; unpack it first",
    "dicomdir": "a directory of a DICOM medium, which lists images and holds none",
    "localizer": "the slice is a localizer",
    "reformat": "the slice was reformatted or projected from others",
    "derived": "the slice was computed from others",
    "not-axial": "the slice is coronal, sagittal or tilted too far",
    "other-body-part": "the header names another part of the body than the head",
    "thinned": "the slice lies between the steps of --every-mm",
    "prediction-failed": "the model failed on a study",
    "writing-failed": "a study's results could not be made into files",
    "only-derived": "the study has reformatted or derived slices alone, and these are not read",
    "own-results": "a folder of results that predict.py wrote",
    "no-scan": "no axial slices of head CT are in what was given",
    # a data set
    "no-data": "the data folder or its label file is missing",
    "bad-labels": "the label file does not have the expected rows or columns",
    "conflicting-labels": "the label file gives one image two different labels",
    "label-mismatch": "`any` differs from the OR of the five subtypes; the slice is used as labelled",
    "no-labels": "an image has no row in the label file",
    "no-file": "a labelled image has no file",
    "duplicate-file": "two files carry the name of one image; the first is used",
    "too-few-slices": "the data are too few for the split or test set that was asked for",
    # a DICOMweb server
    "no-answer": "the server can't be reached, takes too long, or the connection was lost",
    "login-refused": "the server refused the login",
    "study-not-found": "the server has no such study",
    "bad-answer": "the server answered something else than DICOMweb says",
    "not-stored": "the server did not store all results",
    # arguments, runs and models
    "bad-argument": "a command-line argument can't be used",
    "run-exists": "the run folder already holds a run",
    "no-runs": "no trained run fits what was asked for",
    "split-mismatch": "runs were trained on different splits or data",
    "wrong-weights": "a weights file does not fit the arm",
    "training-diverged": "the loss became NaN or infinite",
    "bad-model": "an exported model is missing, of another format, or was changed",
    "weights-download": "the ImageNet weights could not be downloaded",
    "bad-predictions": "a predictions table can't be used",
    "output-exists": "the output already exists",
    "cannot-write": "the output folder can't be written",
}
"""Every reason code with its meaning."""


class InputError(ValueError):
    """What the user gave makes the job impossible.

    Args:
        reason: a key of `REASONS`.
        message: what came, what was expected, what to do.
    """

    def __init__(self, reason: str, message: str):
        if reason not in REASONS:
            raise LookupError(f"unknown reason code {reason!r}")
        super().__init__(message)
        self.reason = reason


class SliceError(InputError):
    """One file can't be used; the others can."""


def report(main: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code; an `InputError` becomes one message on stderr."""
    try:
        return main() or EXIT_DONE
    except InputError as error:
        print(f"error: {error} [{error.reason}]", file=sys.stderr)
        return EXIT_IMPOSSIBLE
    except BrokenPipeError:
        return EXIT_DONE
    except OSError as error:
        print(
            f"error: {error.filename or 'a file'}: {error.strerror or error}; expected a path that can be "
            "read and written. [cannot-write]",
            file=sys.stderr,
        )
        return EXIT_IMPOSSIBLE
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return EXIT_STOPPED
