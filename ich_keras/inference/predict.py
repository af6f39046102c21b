"""Scans to results: the loop over studies.

Slices go through the engine in small batches, and the next batch is decoded while the engine computes, so
memory does not grow with the length of a series, nor with the number of studies.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ich_keras.command import console
from ich_keras.errors import EXIT_DONE, EXIT_SOME_FAILED, EXIT_STOPPED, InputError, SliceError
from ich_keras.evaluation.studies import AGGREGATES, mean_of_highest
from ich_keras.inference import outputs
from ich_keras.inference.results import Skipped, SliceResult, StudyResult
from ich_keras.inference.scan import find_sources, read_source
from ich_keras.inference.series import Slice, Study, group_studies, in_part, read_files
from ich_keras.inference.thresholds import Thresholds
from ich_keras.labels import LABELS
from ich_keras.models.engines import MAPS, Engine

logger = logging.getLogger(__name__)

BATCH = 8
"""Slices a call of the engine: enough that cores seldom wait for each other at a call's end."""

BATCH_PIXELS = BATCH * 512 * 512
"""Pixels a call: of larger slices fewer."""

KEY_SLICES = 3
"""At most so many slices are named for a label: those whose mean is the study's second score."""


@dataclass(frozen=True)
class Options:
    """What `predict.py` was asked for.

    Attributes:
        thresholds: the operating point.
        every_mm: thins series to the slices nearest to steps of so many mm; None reads all.
        explain: whether to write class activation maps.
        dicom_sr, dicom_sc: which DICOM objects to write.
        resume: leave out studies whose results are there, made of the same files, model and options.
        overwrite: remove the results that are there, once slices to read were found.
        parts, part: predict the studies of one of so many disjoint parts, counted from 0.
    """

    thresholds: Thresholds
    every_mm: float | None = None
    explain: bool = False
    dicom_sr: bool = False
    dicom_sc: bool = False
    resume: bool = False
    overwrite: bool = False
    parts: int = 1
    part: int = 0


class Outcome(NamedTuple):
    """The studies of this run as they stand in studies.json, the command's exit code, and how many files that
    may be slices belong to no study."""

    studies: list[dict[str, Any]]
    exit_code: int
    lost: int = 0


def predict_scans(scans: Sequence[Path], engine: Engine, out: Path, options: Options) -> Outcome:
    """Predicts every study of the scans, and writes the results.

    Args:
        scans: DICOM files, folders, zip archives.
        engine: of `models.engines.load_engine`.
        out: the results' folder: see docs/predict.md.
        options: what was asked for.

    Returns:
        The studies and the exit code: 1 where something could not be read, 75 after a signal.

    Raises:
        InputError: "bad-argument" for a SCAN that does not exist; "no-scan" where nothing in the scans can be
            predicted.
        OSError: the results can't be written.
    """
    done: list[dict[str, Any]] = []
    others: list[Skipped] = []
    stopped = False
    try:
        with _progress() as progress:
            studies, others = _find_studies(scans, out, options, progress)
            something = any(study.slices or study.unread for study in studies)
            if options.overwrite and not something:
                raise InputError("no-scan", _nothing_found(studies, others))
            if options.parts == 1:
                outputs.remove_leftovers(out)
            if options.overwrite:
                outputs.remove_results(out)
            mine = [study for study in studies if in_part(study, options.part, options.parts)]
            _predict_all(mine, engine, out, options, progress, done)
    except KeyboardInterrupt:
        stopped = True
    except OSError:
        # The disk may be full: what was written so far is still to be found, if that can be written.
        with suppress(OSError):
            outputs.write_summary(out, engine, others)
        raise
    outputs.write_summary(out, engine, others)
    lost = outputs.count_lost(others)
    if stopped:
        return Outcome(done, EXIT_STOPPED, lost)
    if not something:
        raise InputError("no-scan", _nothing_found(studies, others))
    failed = any(entry["state"] in ("partial", "failed") for entry in done)
    return Outcome(done, EXIT_SOME_FAILED if failed or lost else EXIT_DONE, lost)


def check_model(engine: Engine, explain: bool) -> None:
    """Refuses a model that can't give what is asked for.

    Raises:
        InputError: "bad-model" for other labels than `LABELS`, or no class activation maps where wanted.
    """
    if tuple(engine.metadata.get("labels", ())) != LABELS:
        raise InputError("bad-model", f"the model's labels must be {', '.join(LABELS)}, in this order")
    if explain and not any(name.endswith(MAPS) for name in engine.metadata.get("outputs", ())):
        raise InputError(
            "bad-model", "the model gives no class activation maps; export it again, or leave out --explain"
        )


def _find_studies(
    scans: Sequence[Path], out: Path, options: Options, progress: Progress
) -> tuple[list[Study], list[Skipped]]:
    sources, no_candidates = find_sources(scans, leave_out=out)
    task = progress.add_task("Reading headers", total=len(sources))
    files = read_files(sources, lambda count: progress.advance(task, count))
    progress.remove_task(task)
    studies, others = group_studies(files, options.every_mm)
    others = no_candidates + others
    _say(studies, others, options)
    return studies, others


def _say(studies: Sequence[Study], others: Sequence[Skipped], options: Options) -> None:
    skipped = [entry for study in studies for entry in study.skipped] + list(others)
    read = sum(len(study.slices) for study in studies)
    logger.info("%s slices to read, of %s studies", f"{read:,}", f"{len(studies):,}")
    counts = outputs.count_reasons(skipped)
    if thinned := counts.pop("thinned", 0):
        logger.info("left out by --every-mm %g: %s slices", options.every_mm, f"{thinned:,}")
    if counts:
        logger.info("skipped: %s", ", ".join(f"{count:,} {reason}" for reason, count in counts.items()))
    for study in studies:
        if study.note:
            logger.warning("study %s: %s", study.id, study.note)


def _nothing_found(studies: Sequence[Study], others: Sequence[Skipped]) -> str:
    skipped = [entry for study in studies for entry in study.skipped] + list(others)
    counts = outputs.count_reasons(skipped)
    why = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "it is empty"
    return f"no axial slices of head CT were found ({why}); expected DICOM files of a head CT"


def _predict_all(
    studies: Sequence[Study],
    engine: Engine,
    out: Path,
    options: Options,
    progress: Progress,
    done: list[dict[str, Any]],
) -> None:
    overall = progress.add_task("Studies", total=len(studies))
    task = progress.add_task("Slices", total=sum(len(study.slices) for study in studies))
    for study in studies:
        made_from = outputs.made_from(study, engine, options)
        entry = outputs.finished(out, study.id, made_from) if options.resume else None
        if entry is None:
            result, error = _predict_or_say(study, engine, options, lambda n: progress.advance(task, n))
            entry = _write_or_say(out, study, result, error, made_from, engine, options)
        else:
            progress.advance(task, len(study.slices))
        done.append(entry)
        progress.advance(overall, 1)


def _predict_or_say(
    study: Study, engine: Engine, options: Options, advance: Callable[[int], None]
) -> tuple[StudyResult | None, str]:
    """The result, or None and why there is none: whatever one study does, the others go on."""
    try:
        result = predict_study(study, engine, options, advance)
    except Exception as error:
        # The text of a foreign error may hold what stands in a header.
        logger.error("study %s: the prediction failed (%s); the others go on", study.id, type(error).__name__)
        logger.debug("study %s", study.id, exc_info=True)
        return None, "prediction-failed"
    return result, ""


def _write_or_say(
    out: Path, study: Study, result: StudyResult | None, error: str, *how: Any
) -> dict[str, Any]:
    """The study's entry; where its files can't be made it is written as failed, and the others go on.

    Raises:
        OSError: the disk is full, or the like: it would be so for the others too.
    """
    try:
        return outputs.write_study(out, study, result, error, *how)
    except OSError:
        raise
    except Exception as failure:
        logger.error(
            "study %s: its results could not be written (%s); the others go on",
            study.id,
            type(failure).__name__,
        )
        logger.debug("study %s", study.id, exc_info=True)
        return outputs.write_study(out, study, None, "writing-failed", *how)


def predict_study(
    study: Study, engine: Engine, options: Options, advance: Callable[[int], None] = lambda count: None
) -> StudyResult:
    """Predicts one study.

    Args:
        study: what to read.
        engine: as for `predict_scans`.
        options: as for `predict_scans`.
        advance: told how many slices were read.

    Raises:
        InputError: "prediction-failed" where the model gives numbers that are no probabilities.
    """
    start = time.perf_counter()
    found: dict[int, SliceResult] = {}
    skipped = list(study.skipped)
    for places, hu, unread in _decoded(study.slices):
        skipped += unread
        if places:
            values = engine.predict(hu)
            _check_probabilities(values, len(places))
            for k, place in enumerate(places):
                found[place] = _slice_result(
                    study.slices[place], {name: value[k] for name, value in values.items()}
                )
        advance(len(places) + len(unread))
    slices = tuple(found[place] for place in sorted(found))
    scores, flagged, key_slices = decide(slices, options.thresholds.values)
    maps = _explain(slices, key_slices, engine) if options.explain else {}
    return StudyResult(
        id=study.id,
        patient=study.patient,
        slices=slices,
        skipped=tuple(skipped),
        scores=scores,
        thresholds=options.thresholds.values,
        threshold_source=options.thresholds.source,
        flagged=flagged,
        key_slices=key_slices,
        maps=maps,
        model=engine.metadata,
        model_sha256=engine.model_sha256,
        seconds=time.perf_counter() - start,
        expected=len(study.slices) + study.unread,
        note=study.note,
    )


def _slice_result(entry: Slice, probabilities: dict[str, np.ndarray]) -> SliceResult:
    return SliceResult(entry.id, entry.source, entry.z_mm, probabilities, entry.series, entry.orientation)


def _check_probabilities(values: dict[str, np.ndarray], count: int) -> None:
    for value in values.values():
        if value.shape != (count, len(LABELS)) or not ((value >= 0) & (value <= 1)).all():
            raise InputError("prediction-failed", "the model gave numbers that are no probabilities")


Decoded = tuple[list[int], np.ndarray, list[Skipped]]
"""Positions of slices that could be read, their HU float32 `[N, H, W]`, and those that could not."""


def _decoded(slices: Sequence[Slice]) -> Iterator[Decoded]:
    """Batches of slices of one size, decoded ahead in a thread."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for place, entry in enumerate(slices):
        sizes.setdefault((entry.rows, entry.columns), []).append(place)
    batches = []
    for (rows, columns), places in sizes.items():
        count = min(BATCH, max(1, BATCH_PIXELS // (rows * columns)))
        batches += [places[i : i + count] for i in range(0, len(places), count)]
        if count == BATCH < len(places) and len(batches[-1]) == 1:
            # OpenVINO compiles another model for a single slice.
            batches[-2:] = [batches[-2] + batches[-1]]
    waiting: deque[Future[Decoded]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for places in batches:
            waiting.append(pool.submit(_decode, slices, places))
            if len(waiting) > 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _decode(slices: Sequence[Slice], places: Sequence[int]) -> Decoded:
    read, hu, unread = [], [], []
    for place in places:
        try:
            hu.append(read_source(slices[place].source))
            read.append(place)
        except SliceError as error:
            unread.append(Skipped(slices[place].source, error.reason, str(error)))
        except Exception as error:
            detail = f"reading it failed ({type(error).__name__})"
            unread.append(Skipped(slices[place].source, "unreadable-file", detail))
    return read, np.stack(hu) if hu else np.empty((0, 1, 1), np.float32), unread


def decide(
    slices: Sequence[SliceResult], thresholds: np.ndarray
) -> tuple[dict[str, np.ndarray], tuple[str, ...], dict[str, tuple[int, ...]]]:
    """A study's scores, flagged labels and key slices: see `StudyResult`.

    Without a slice the scores are NaN and nothing is flagged.
    """
    if not slices:
        return {name: np.full(len(LABELS), np.nan) for name in AGGREGATES}, (), {}
    table = np.stack([entry.probabilities["probability"] for entry in slices]).astype(np.float64)
    study = np.zeros(len(table), np.int64)
    scores = {
        name: np.array([mean_of_highest(study, column, top)[0] for column in table.T])
        for name, top in AGGREGATES.items()
    }
    key_slices = {}
    for label, column, threshold in zip(LABELS, table.T, thresholds, strict=True):
        highest = np.argsort(-column, kind="stable")[:KEY_SLICES]
        places = tuple(int(place) for place in highest if column[place] >= threshold)
        if places:
            key_slices[label] = places
    return scores, tuple(key_slices), key_slices


def _explain(
    slices: Sequence[SliceResult], key_slices: dict[str, tuple[int, ...]], engine: Engine
) -> dict[int, dict[str, np.ndarray]]:
    maps = {}
    for place in sorted({place for places in key_slices.values() for place in places}):
        _, found = engine.explain(read_source(slices[place].source)[np.newaxis])
        maps[place] = {arm: value[0] for arm, value in found.items()}
    return maps


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
