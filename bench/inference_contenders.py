"""What bench/inference.py compares, each in a process of its own.

`python -m bench.inference_contenders KIND ...` answers commands on standard input, a line of JSON each, with
a line of JSON. A folder WORK, which the kind `prepare` fills, holds `hu.npy`, float32 [N, 512, 512], a folder
of weights and an export for each engine, and the files of one study.
"""

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Answer = Callable[..., Any]
STUDY_SLICES = 34
SIDE = 3072
"""Of the square matrices that are multiplied: 0.06 TFLOP."""


def prepare(work: str, *rest: str) -> Answer:
    """Slices, arms whose logits spread, their exports, and what a slice takes of each arm."""
    import keras

    from bench.spread_logits import spread_logits
    from ich_keras.ct.phantom import write_phantoms
    from ich_keras.datasets.index import load_index
    from ich_keras.models import export
    from ich_keras.models.arms import build_arm

    folder = Path(work)
    names, data = (rest[: rest.index("--data")], Path(rest[-1])) if "--data" in rest else (rest, None)
    writers = {
        "tensorflow": export.export_saved_model,
        "openvino": export.export_openvino,
        "onnx": export.export_onnx,
    }

    def make(*engines: str) -> dict[str, Any]:
        found = data or folder / "phantoms"
        if data is None:
            write_phantoms(found, patients=4, seed=0)
        index = load_index(found)
        study = index.rows.groupby("study").size().idxmax()
        rows = np.flatnonzero(index.rows["study"] == study)[:STUDY_SLICES]
        (folder / "study").mkdir()
        for path in index.rows["path"].iloc[rows]:
            shutil.copy(index.root / path, folder / "study" / Path(path).name)
        hu = np.stack([index.read_hu(place) for place in rows[np.arange(16) % len(rows)]])
        np.save(folder / "hu.npy", hu)
        arms = [build_arm(name) for name in names]
        for arm in arms:
            spread_logits(arm, export.images_from_hu(hu, arm.input_shape[1]).numpy())
            arm.save_weights(folder / f"{arm.name}.weights.h5")
        seconds = {}
        for engine in engines:
            start = time.perf_counter()
            writers[engine](arms, folder / engine, {})
            seconds[engine] = time.perf_counter() - start
        keras.backend.clear_session()
        return {
            "data": "phantoms" if index.synthetic else "real slices",
            "gflop": {arm.name: gflop(arm) for arm in arms},
            "seconds": seconds,
        }

    return {"make": make}.__getitem__


def gflop(arm: Any) -> float:
    """Multiplications and additions of an arm's convolutions and dense layers for a slice, in 1e9."""
    import keras

    total = 0
    for layer in arm.layers:
        if isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.Conv2D):
            places = np.prod(layer.output.shape[1:3])
            # Of a depthwise kernel [h, w, channels, multiplier] and any other [h, w, in, out] alike, each
            # weight is used once at each place.
            total += 2 * places * np.prod(layer.kernel.shape)
        elif isinstance(layer, keras.layers.Dense):
            total += 2 * np.prod(layer.kernel.shape)
    return float(total) / 1e9


def timed(work: str, probabilities: Callable[[np.ndarray, int], np.ndarray]) -> Answer:
    """The commands `logits` and `run BATCH SLICES`."""
    hu = np.load(Path(work) / "hu.npy")

    def logits() -> list[list[float]]:
        from bench.spread_logits import logits_of

        return logits_of(probabilities(hu, 4)).tolist()

    def run(batch: int, slices: int) -> float:
        """Slices a second over `slices` slices in calls of `batch`."""
        calls = max(1, slices // batch)
        start = time.perf_counter()
        for call in range(calls):
            probabilities(hu[(call * batch + np.arange(batch)) % len(hu)], batch)
        return calls * batch / (time.perf_counter() - start)

    return {"logits": logits, "run": run}.__getitem__


def baseline(work: str, *names: str) -> Answer:
    """cv2 makes the images; each Keras model's `predict` is called; the mean is the hybrid's."""
    from ich_keras.ct.preprocess import slice_to_image
    from ich_keras.models.arms import build_arm

    arms = [build_arm(name) for name in names]
    for arm in arms:
        arm.load_weights(Path(work) / f"{arm.name}.weights.h5")

    def probabilities(hu: np.ndarray, batch: int) -> np.ndarray:
        parts = []
        for arm in arms:
            images = np.stack([slice_to_image(one, arm.input_shape[1]) for one in hu])
            parts.append(arm.predict(images, batch_size=batch, verbose=0))
        return np.mean(parts, axis=0)

    return timed(work, probabilities)


def engine(work: str, name: str) -> Answer:
    from ich_keras.models.engines import load_engine

    loaded = load_engine(Path(work) / name, name)
    return timed(work, lambda hu, batch: loaded.predict(hu)["probability"])


def peak(library: str) -> Answer:
    """The command `run`: GFLOP/s of the best of some products of two float32 matrices."""
    a, b = (np.random.default_rng(seed).random((SIDE, SIDE), np.float32) for seed in (0, 1))
    if library == "numpy":
        multiply = lambda: a @ b  # noqa: E731
    elif library == "tensorflow":
        import tensorflow as tf

        one, other = tf.constant(a), tf.constant(b)
        product = tf.function(tf.matmul)
        multiply = lambda: product(one, other).numpy()  # noqa: E731
    else:
        from ich_keras.models.engines import import_openvino

        openvino = import_openvino()
        opset13 = openvino.opset13

        left, right = (opset13.parameter([SIDE, SIDE], np.float32) for _ in range(2))
        model = openvino.Model([opset13.matmul(left, right, False, False)], [left, right])
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
        multiply = lambda: request.infer([a, b], share_inputs=True, share_outputs=True)  # noqa: E731

    def run() -> float:
        best = np.inf
        for _ in range(10):
            start = time.perf_counter()
            multiply()
            best = min(best, time.perf_counter() - start)
        return 2 * SIDE**3 / best / 1e9

    return {"run": run}.__getitem__


def studies(work: str) -> Answer:
    """The commands `study ROUNDS`, files to studies.json, and `memory COUNT`, over so many studies."""
    from ich_keras.inference.predict import Options, predict_scans
    from ich_keras.inference.thresholds import resolve_thresholds
    from ich_keras.models.engines import load_engine

    spent = 0.0
    loaded = load_engine(Path(work) / "openvino", "openvino")

    def counted(hu: np.ndarray, explain: bool) -> dict[str, np.ndarray]:
        nonlocal spent
        start = time.perf_counter()
        outputs = loaded.run(hu, explain)
        spent += time.perf_counter() - start
        return outputs

    model = loaded._replace(run=counted)
    options = Options(thresholds=resolve_thresholds(None, loaded.metadata))

    def predict(number: int) -> tuple[float, float]:
        nonlocal spent
        spent, start = 0.0, time.perf_counter()
        out = Path(work) / f"results-{number}"
        predict_scans([Path(work) / "study"], model, out, options)
        seconds = time.perf_counter() - start
        shutil.rmtree(out)
        return seconds, 1 - spent / seconds

    def study(rounds: int) -> dict[str, float]:
        predict(0)
        measured = [predict(number) for number in range(rounds)]
        seconds, outside = sorted(measured)[len(measured) // 2]
        slices = len(list((Path(work) / "study").iterdir()))
        return {"slices": slices, "seconds": seconds, "share_outside_networks": outside}

    def memory(count: int) -> list[int]:
        """Resident MB after each tenth of the studies."""
        page, resident = resource.getpagesize(), []
        for number in range(count):
            predict(number)
            if (number + 1) % max(1, count // 10) == 0:
                resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * page >> 20)
        return resident

    return {"study": study, "memory": memory}.__getitem__


KINDS = {"prepare": prepare, "baseline": baseline, "engine": engine, "peak": peak, "studies": studies}


def main(kind: str, *arguments: str) -> None:
    answers = KINDS[kind](*arguments)
    for line in sys.stdin:
        name, *rest = json.loads(line)
        print(json.dumps(answers(name)(*rest)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
