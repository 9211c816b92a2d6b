"""Throughput from photographs to training batches, in images per second and core.

    python benchmarks/input.py
    python benchmarks/input.py --rounds=9 --out=results/benchmarks/input_cpu.json

JPEGs of 500 x 400 pixels at quality 95, crops of scikit-learn's two photographs, are decoded and
randomly cropped to 224 x 224 (Inception's crop, at least 8 % of the area), sequentially:

    simplejpeg         this project's decoder, with OpenCV
    pillow             this project's fallback
    torchvision's way  Pillow: decode, crop, resize with antialiasing
    tf.data            tf.image.decode_and_crop_jpeg and tf.image.resize, if TensorFlow is installed

and by the complete stream, including records, threads and batches, with one thread and with two.
The data set is opened beforehand, since a run does that once. Flips happen later, on the device, at
no cost here. The ways alternate, so that other load on the machine affects all equally. The time is
the CPU time of all threads, which equals the time of one core on an idle machine. Results are
medians over the rounds.

Also measures the wall time to the first batch of 64 at a step far into a run, and the resident
memory of the process after each of ten epochs, which must not grow.
"""

import importlib.util
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import timing
from absl import app, flags
from PIL import Image
from sklearn.datasets import load_sample_images

from randmix.runtime import host

SETTINGS = host.tune()  # before the next line imports JAX
from randmix.data import catalog, photographs, prepare, stream  # noqa: E402 (after tuning)

flags.DEFINE_integer("images", 512, "Photographs per round.", lower_bound=64)
flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
flags.DEFINE_string("out", None, "JSON file to write the figures to.")

SIZE, SCALE, ASPECT, BATCH, EPOCHS, PREPARED = 224, 0.08, 4 / 3, 64, 10, 2048
NAME = "imagefolder/photographs"


def jpegs(count):
    """Returns distinct crops of 500 x 400 pixels as JPEGs."""
    rng = np.random.default_rng(0)
    wholes = [Image.fromarray(image) for image in load_sample_images().images]
    files = []
    for k in range(count):
        left, top = int(rng.integers(0, 140)), int(rng.integers(0, 27))
        buffer = io.BytesIO()
        wholes[k % 2].crop((left, top, left + 500, top + 400)).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    return files


def one_by_one(files, decoder):
    def work(round_number):
        for k, data in enumerate(files):
            draws = stream._uniform(round_number, k)
            photographs.random_crop(
                data, draws, image_size=SIZE, scale=SCALE, aspect=ASPECT, decoder=decoder
            )

    return work


def as_torchvision(files):
    def work(round_number):
        for k, data in enumerate(files):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            box = photographs.random_box(
                stream._uniform(round_number, k), *image.size, scale=SCALE, aspect=ASPECT
            )
            corners = (box.left, box.top, box.left + box.width, box.top + box.height)
            np.asarray(image.crop(corners).resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    return work


def as_tf_data(files):
    import tensorflow as tf

    def crop(data, seed):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros((1, 0, 4)),
            seed,
            aspect_ratio_range=(1 / ASPECT, ASPECT),
            area_range=(SCALE, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        return tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)

    def work(round_number):
        dataset = tf.data.Dataset.from_tensor_slices(files).enumerate()
        dataset = dataset.map(
            lambda k, data: crop(data, tf.stack([tf.cast(k, tf.int32), round_number])),
            num_parallel_calls=1,
        )
        options = tf.data.Options()
        options.threading.private_threadpool_size = 1
        for _ in dataset.with_options(options):
            pass

    return work


def folder_of(files, root):
    """Prepares the photographs as a data set and returns its data directory."""
    for label in ("china", "flower"):
        (root / "source" / label).mkdir(parents=True)
    for k, data in enumerate(files):
        (root / "source" / ("china", "flower")[k % 2] / f"{k:04d}.jpg").write_bytes(data)
    prepare.prepare_folder(root / "source", NAME, root, progress=False)
    return root


def open_source(data_dir):
    data_set = catalog.get(NAME, data_dir, image_size=SIZE)
    return stream.Photographs(data_set, "train", data_dir, stream.Reading())


def iterate(source, *, workers, start, steps):
    return stream.train_batches(
        source,
        seed=0,
        batch_size=BATCH,
        rows=range(BATCH),
        steps=range(start, start + steps),
        put=lambda batch: batch,
        workers=workers,
    )


def streamed(data_dir, workers, images):
    steps, source = images // BATCH, open_source(data_dir)

    def work(round_number):
        iterator = iterate(source, workers=workers, start=round_number * steps, steps=steps)
        assert sum(1 for _ in iterator) == steps
        iterator.close()

    return work


def resident_megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def first_batch_seconds(data_dir):
    began = time.perf_counter()
    iterator = iterate(open_source(data_dir), workers=0, start=1_000_000, steps=100)
    next(iterator)
    seconds = time.perf_counter() - began
    iterator.close()
    return seconds


def memory_by_epoch(data_dir, examples):
    """Resident memory in MB after each epoch."""
    steps = examples // BATCH
    iterator = iterate(open_source(data_dir), workers=2, start=0, steps=steps * EPOCHS)
    megabytes = []
    for k, _ in enumerate(iterator, start=1):
        if k % steps == 0:
            megabytes.append(round(resident_megabytes(), 1))
    iterator.close()
    return megabytes


def main(argv):
    print("host settings:", SETTINGS)  # those of every run: malloc treats images as large blocks
    options = flags.FLAGS
    every = jpegs(PREPARED)
    files = every[: options.images]
    with tempfile.TemporaryDirectory() as folder:
        data_dir = folder_of(every, Path(folder))
        ways = {
            "simplejpeg": one_by_one(files, "simplejpeg"),
            "pillow": one_by_one(files, "pillow"),
            "torchvision's way": as_torchvision(files),
            "stream, 1 thread": streamed(data_dir, 1, options.images),
            "stream, 2 threads": streamed(data_dir, 2, options.images),
        }
        if importlib.util.find_spec("tensorflow"):
            ways["tf.data"] = as_tf_data(files)
        seconds = {name: [] for name in ways}
        images = {
            name: options.images // BATCH * BATCH if "stream" in name else options.images
            for name in ways
        }
        for work in ways.values():
            work(0)  # warms up imports and TensorFlow's tracing
        for round_number in range(1, options.rounds + 1):
            for name, work in ways.items():
                began = time.process_time()
                work(round_number)
                seconds[name].append(time.process_time() - began)
        rates = {name: images[name] / statistics.median(seconds[name]) for name in ways}
        relative = {
            name: statistics.median(
                images[name] / own / (images["simplejpeg"] / ours)
                for own, ours in zip(seconds[name], seconds["simplejpeg"], strict=True)
            )
            for name in ways
        }
        print(f"{'way':20}{'images/s per core':>18}{'of simplejpeg':>16}")
        for name in ways:
            print(f"{name:20}{rates[name]:18.0f}{relative[name]:16.2f}")
        first = statistics.median(first_batch_seconds(data_dir) for _ in range(options.rounds))
        megabytes = memory_by_epoch(data_dir, PREPARED * 9 // 10)
        print(f"first batch of {BATCH}: {first:.2f} s wall time")
        print(f"resident MB after each of {EPOCHS} epochs: {', '.join(map(str, megabytes))}")
    if options.out:
        figures = {
            "machine": timing.machine(),
            "images_per_second_a_core": rates,
            "of_simplejpeg": relative,
            "first_batch_seconds": first,
            "resident_megabytes": megabytes,
        }
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
