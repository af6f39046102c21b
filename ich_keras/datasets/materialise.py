"""Makes shards: `python -m ich_keras.datasets.materialise --data DIR --out DIR`.

Both image sizes of every slice, decoded once, in files that `train.py --data` and `tf.data` read. Run it
again after it was stopped: whole shards are kept, the others are made, and the end is the same bytes.
"""

import argparse
import itertools
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ich_keras import errors
from ich_keras.datasets.batches import decode_batch, slice_table
from ich_keras.datasets.index import Index, load_index
from ich_keras.datasets.layout import shown
from ich_keras.datasets.shards import (
    CODECS,
    MANIFEST,
    PLAN,
    ROWS,
    SIZES,
    VERSION,
    encode_image,
    place_columns,
)
from ich_keras.errors import InputError, SliceError
from ich_keras.files import fingerprint, sha256_of_file, whole_file, write_json
from ich_keras.labels import LABELS

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)

SLICES_PER_SHARD = 2048
"""Some 110 MB: few files for a file system, many for a machine's cores to share."""


@dataclass(frozen=True)
class Job:
    """One shard to make; pickles, so that any runner can carry it."""

    number: int
    index: Index
    out: str
    codec: str

    @property
    def name(self) -> str:
        return f"shard-{self.number:05d}.tfrecord"

    @property
    def report(self) -> Path:
        """The file that says that the shard is whole, and what is in it."""
        return Path(self.out) / f"shard-{self.number:05d}.json"


def materialise(
    index: Index,
    out: str | os.PathLike[str],
    *,
    codec: str = CODECS[0],
    runner: str = "local",
    workers: int | None = None,
    slices_per_shard: int = SLICES_PER_SHARD,
    beam_options: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes the shards of an index, or those that are missing or damaged, and then the manifest.

    A slice that can't be decoded is left out and listed in the manifest.

    Args:
        index: the data.
        out: the shards' folder.
        codec: one of `shards.CODECS`.
        runner: "local", processes on this machine, or "beam", Apache Beam.
        workers: processes of the local runner; None for one a core.
        slices_per_shard: slices in each shard but the last.
        beam_options: Beam's own command-line options.

    Returns:
        The manifest: version, codec, slices, fingerprint, synthetic, shards (name to slices, bytes, sha256),
        left_out (reason, item, detail) by this, problems of the data, rows_sha256.

    Raises:
        InputError: output-exists, where `out` holds something else; bad-argument; cannot-write.
    """
    if codec not in CODECS:
        raise InputError("bad-argument", f"codec must be one of {', '.join(CODECS)}; received {codec!r}")
    if slices_per_shard < 1:
        raise InputError("bad-argument", f"slices per shard must be 1 or more; received {slices_per_shard}")
    out = Path(out)
    _prepare(out, index, codec, slices_per_shard)
    starts = range(0, len(index.rows), slices_per_shard)
    jobs = [
        Job(number, _part(index, start, slices_per_shard), str(out), codec)
        for number, start in enumerate(starts)
    ]
    {"local": _run_locally, "beam": _run_beam}[runner](jobs, workers, beam_options)
    return _finish(out, index, jobs)


def write_shard(job: Job) -> int:
    """Makes one shard, unless it is there and whole. Returns the number of its slices.

    Raises:
        OSError: the shard can't be written.
    """
    path = Path(job.out) / job.name
    try:
        report = json.loads(job.report.read_text(encoding="utf-8"))
        if sha256_of_file(path) == report["sha256"]:
            return report["slices"]
    except (FileNotFoundError, ValueError):
        pass
    places: list[list[int]] = []
    left_out: list[list[str]] = []
    with whole_file(path) as temporary:
        from tensorflow.io import TFRecordWriter

        with TFRecordWriter(str(temporary)) as writer:
            at = 0
            for row, images in _decoded(job.index, left_out):
                data = {size: encode_image(images[size], job.codec) for size in SIZES}
                record = _example(job.index.rows.iloc[row], data)
                writer.write(record)
                # A record is its length in 8 bytes, 4 of checksum, the data, and 4 of checksum.
                place = [row]
                for size in SIZES:
                    place += [at + 12 + record.index(data[size]), len(data[size])]
                places.append(place)
                at += 16 + len(record)
    write_json(
        job.report,
        {
            "slices": len(places),
            "bytes": path.stat().st_size,
            "sha256": sha256_of_file(path),
            "places": places,
            "left_out": left_out,
        },
    )
    return len(places)


def _decoded(index: Index, left_out: list[list[str]]) -> Iterator[tuple[int, dict[int, np.ndarray]]]:
    table = slice_table(index)
    for row in range(len(index.rows)):
        try:
            images = decode_batch(table, np.array([row]), SIZES)
        except SliceError as error:
            left_out.append([error.reason, str(index.rows["path"].iat[row]), str(error)])
        else:
            yield row, {size: image[0] for size, image in images.items()}


def _example(row: pd.Series, data: dict[int, bytes]) -> bytes:
    import tensorflow as tf

    def of_bytes(value: bytes) -> "tf.train.Feature":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    labels = tf.train.Feature(int64_list=tf.train.Int64List(value=[int(row[label]) for label in LABELS]))
    features = {"id": of_bytes(row["id"].encode()), "labels": labels}
    features |= {f"image_{size}": of_bytes(value) for size, value in data.items()}
    # Without `deterministic` the features' order, and so the shard's bytes, could differ from run to run.
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(
        deterministic=True
    )


def _part(index: Index, start: int, count: int) -> Index:
    rows = index.rows.iloc[start : start + count].reset_index(drop=True)
    return Index(rows, pd.DataFrame(), index.root.resolve(), index.synthetic, "")


def _prepare(out: Path, index: Index, codec: str, slices_per_shard: int) -> None:
    if "codec" in index.rows:
        raise InputError("bad-argument", "--data is a folder of shards already; give the DICOM files")
    plan = {
        "version": VERSION,
        "fingerprint": index.fingerprint,
        "slices": len(index.rows),
        "codec": codec,
        "slices_per_shard": slices_per_shard,
    }
    try:
        if (out / PLAN).exists():
            found = json.loads((out / PLAN).read_text(encoding="utf-8"))
            different = [key for key in plan if found.get(key) != plan[key]]
            if different:
                raise InputError(
                    "output-exists",
                    f"{out} holds shards made with another {', '.join(different)}; give another --out, or"
                    " remove it",
                )
        elif out.exists() and any(out.iterdir()):
            raise InputError("output-exists", f"{out} is not empty and holds no shards; give another --out")
        for left_over in out.glob(".*-shard-*"):
            left_over.unlink()
        write_json(out / PLAN, plan)
    except OSError as error:
        raise InputError("cannot-write", f"{out} can't be written: {error.strerror}") from None


def _run_locally(jobs: list[Job], workers: int | None, beam_options: Sequence[str]) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(*columns))
        task = progress.add_task("shards", total=len(jobs))
        done: Iterable[int]
        if workers == 1:
            done = map(write_shard, jobs)
        else:
            # TensorFlow does not survive a fork.
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
            done = pool.map(write_shard, jobs)
        for _ in done:
            progress.advance(task)


def _run_beam(jobs: list[Job], workers: int | None, beam_options: Sequence[str]) -> None:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise InputError(
            "bad-argument", "--runner beam needs Apache Beam: pip install -r requirements-beam.txt"
        ) from None
    with beam.Pipeline(options=PipelineOptions(list(beam_options))) as pipeline:
        _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.Map(write_shard)


def _finish(out: Path, index: Index, jobs: list[Job]) -> dict[str, Any]:
    reports = [json.loads(job.report.read_text(encoding="utf-8")) for job in jobs]
    columns = list(itertools.chain.from_iterable(place_columns(size) for size in SIZES))
    parts = []
    for job, report in zip(jobs, reports, strict=True):
        places = np.array(report["places"], dtype=np.int64).reshape(-1, 1 + len(columns))
        part = job.index.rows.iloc[places[:, 0]].reset_index(drop=True)
        part["path"] = job.name
        part[columns] = places[:, 1:]
        parts.append(part)
    rows = pd.concat(parts, ignore_index=True)
    rows[["offset", "length", "member_offset", "member_length", "member_method"]] = -1
    rows["codec"] = json.loads((out / PLAN).read_text(encoding="utf-8"))["codec"]
    with whole_file(out / ROWS) as temporary:
        rows.to_parquet(temporary, index=False)
    left_out = [entry for report in reports for entry in report["left_out"]]
    manifest = {
        "version": VERSION,
        "codec": rows["codec"].iat[0] if len(rows) else CODECS[0],
        "slices": len(rows),
        # The same data give the same splits, whether they are read from DICOM or from shards.
        "fingerprint": fingerprint([index.fingerprint, left_out]) if left_out else index.fingerprint,
        "synthetic": index.synthetic,
        "shards": {
            job.name: {key: report[key] for key in ("slices", "bytes", "sha256")}
            for job, report in zip(jobs, reports, strict=True)
        },
        "left_out": left_out,
        "problems": index.problems.to_numpy().tolist(),
        "rows_sha256": sha256_of_file(out / ROWS),
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ich_keras.datasets.materialise", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("--data", type=Path, required=True, help="a data set in Kaggle's layout, or its zip")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--runner", choices=("local", "beam"), default="local")
    parser.add_argument("--codec", choices=CODECS, default=CODECS[0], help="default: %(default)s")
    parser.add_argument("--workers", type=int, help="processes of the local runner; default: one a core")
    parser.add_argument("--slices-per-shard", type=int, default=SLICES_PER_SHARD, help="default: %(default)s")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser.add_argument(
        "beam_options",
        nargs="*",
        metavar="-- OPTION",
        help="with --runner beam: Beam's own options, after --",
    )
    args = parser.parse_args(arguments)
    if args.beam_options and args.runner != "beam":
        parser.error(f"unrecognized arguments: {' '.join(args.beam_options)}")
    manifest = materialise(
        load_index(args.data),
        args.out,
        codec=args.codec,
        runner=args.runner,
        workers=args.workers,
        slices_per_shard=args.slices_per_shard,
        beam_options=args.beam_options,
    )
    size = sum(shard["bytes"] for shard in manifest["shards"].values())
    print(
        f"{manifest['slices']:,} slices in {len(manifest['shards']):,} shards, {size / 1e6:,.1f} MB"
        f" ({size / max(1, manifest['slices']) / 1e3:.1f} kB a slice): {args.out}"
    )
    for reason, item, _ in manifest["left_out"]:
        print(f"left out: {shown(item)} [{reason}]")
    return errors.EXIT_SOME_FAILED if manifest["left_out"] else errors.EXIT_DONE


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(errors.report(main))
