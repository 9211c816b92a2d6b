"""Throughput from photographs to training batches, in images per second of processor time.

    python benchmarks/input.py
    python benchmarks/input.py --source=DIR --rounds=15 --out=results/benchmarks/input_cpu.json

JPEGs are decoded and randomly cropped to 224 x 224 (Inception's crop, at least 8 % of the area).
They are those below --source, repeated as often as needed, or else crops of scikit-learn's two
photographs, 500 x 400 pixels at quality 95. From memory, one image after the other:

    simplejpeg         this project's decoder, with OpenCV
    pillow             this project's fallback
    torchvision, PIL   Pillow and torchvision.transforms.v2.RandomResizedCrop, antialiased
    torchvision, uint8 torchvision.io.decode_jpeg and the same transform of its tensors

and as batches of 64:

    stream             this project's complete stream: records, order, threads, one or two
    tf.data            decode_and_crop_jpeg and tf.image.resize without antialiasing, one thread,
                       from memory and from a file of TFRecords
    DataLoader, PIL    PyTorch's DataLoader with one worker: "torchvision, PIL"
    Grain, PIL         Grain with one thread: Pillow, resized with antialiasing

Each is built once and run once before timing, and then they alternate, so that other load on the
machine affects all equally. The time is the CPU time of all threads and child processes, which is
that of one core on an idle machine. Results are medians over the rounds. A peer that can't be
imported is left out. Flips happen later, on the device, at no cost here.

Also measures the wall time to the first batch of 64 at a step far into a run, and the resident
memory of the process after each of ten epochs (--epochs), which must not grow.
"""

import io
import itertools
import json
import multiprocessing
import os
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

SETTINGS = host.tune()  # before the next lines import JAX
import grain  # noqa: E402 (after tuning)

from randmix.data import catalog, photographs, prepare, reader, stream  # noqa: E402 (after tuning)

flags.DEFINE_string("source", None, "Folder with JPEGs; default: scikit-learn's photographs.")
flags.DEFINE_integer("images", 512, "Photographs per round.", lower_bound=64)
flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
flags.DEFINE_integer("epochs", 10, "Epochs after which memory is measured.", lower_bound=0)
flags.DEFINE_string("out", None, "JSON file to write the figures to.")

SIZE, SCALE, ASPECT, BATCH, PREPARED = 224, 0.08, 4 / 3, 64, 2048
NAME = "imagefolder/photographs"


def jpegs(count, source):
    """Returns the RGB JPEGs below a folder, repeatedly, or distinct crops of 500 x 400 pixels."""
    if source:
        files = sorted(file for file in Path(source).rglob("*") if file.suffix.lower() in _SUFFIXES)
        # Grey ones are prepared as PNGs, which would not be the same work for all.
        files = [file.read_bytes() for file in files if Image.open(file).mode == "RGB"]
        return list(itertools.islice(itertools.cycle(files), count))
    rng = np.random.default_rng(0)
    wholes = [Image.fromarray(image) for image in load_sample_images().images]
    files = []
    for k in range(count):
        left, top = int(rng.integers(0, 140)), int(rng.integers(0, 27))
        buffer = io.BytesIO()
        wholes[k % 2].crop((left, top, left + 500, top + 400)).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    return files


_SUFFIXES = (".jpg", ".jpeg")


def one_by_one(files, **options):
    def work(round_number):
        for k, data in enumerate(files):
            draws = stream._uniform(round_number, k)
            photographs.random_crop(
                data, draws, image_size=SIZE, scale=SCALE, aspect=ASPECT, **options
            )

    return work


class Torchvision:
    """A PyTorch dataset of random crops; a class, so that DataLoader's workers can import it."""

    def __init__(self, files, decode_jpeg=False):
        import torch

        try:
            from torchvision.transforms import v2
        except RuntimeError as error:  # a build for another PyTorch, whose operators don't load
            raise ImportError(str(error), name="torchvision") from error

        self._crop = v2.RandomResizedCrop(
            (SIZE, SIZE), scale=(SCALE, 1.0), ratio=(1 / ASPECT, ASPECT), antialias=True
        )
        self._files = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
        self._decode = self._to_tensor if decode_jpeg else self._to_image
        torch.set_num_threads(1)

    def _to_image(self, data):
        return Image.open(io.BytesIO(data.numpy())).convert("RGB")

    def _to_tensor(self, data):
        from torchvision import io as torchvision_io

        return torchvision_io.decode_jpeg(data, torchvision_io.ImageReadMode.RGB)

    def __len__(self):
        return len(self._files)

    def __getitem__(self, k):
        return np.asarray(self._crop(self._decode(self._files[k])))


def as_torchvision(files, **options):
    crops = Torchvision(files, **options)

    def work(round_number):
        for k in range(len(crops)):
            crops[k]

    return work


def as_data_loader(files):
    from torch.utils import data

    loader = data.DataLoader(
        Torchvision(files),
        batch_size=BATCH,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    return lambda round_number: exhaust(loader)


def as_grain(files):
    def crop(data, rng):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        draws = rng.random((10, 4))
        left, top, w, h = photographs.random_box(draws, *image.size, scale=SCALE, aspect=ASPECT)
        part = image.crop((left, top, left + w, top + h))
        return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    crops = grain.MapDataset.source(files).seed(0).random_map(crop)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * BATCH)
    batches = crops.to_iter_dataset(options).batch(BATCH)
    return lambda round_number: exhaust(batches)


def as_tf_data(files, records=None):
    import tensorflow as tf

    def crop(data):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros((1, 0, 4)),
            aspect_ratio_range=(1 / ASPECT, ASPECT),
            area_range=(SCALE, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        return tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)

    if records:
        with tf.io.TFRecordWriter(str(records)) as writer:
            for data in files:
                writer.write(data)
        dataset = tf.data.TFRecordDataset(str(records))
    else:
        dataset = tf.data.Dataset.from_tensor_slices(files)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    batches = dataset.map(crop, num_parallel_calls=1).batch(BATCH).with_options(options)
    return lambda round_number: exhaust(batches)


def exhaust(batches):
    for _ in batches:
        pass


def folder_of(files, root):
    """Prepares the photographs as a data set and returns its data directory."""
    for label in ("one", "other"):
        (root / "source" / label).mkdir(parents=True)
    for k, data in enumerate(files):
        (root / "source" / ("one", "other")[k % 2] / f"{k:04d}.jpg").write_bytes(data)
    prepare.prepare_folder(root / "source", NAME, root, progress=False)
    return root


def open_source(data_dir):
    data_set = catalog.get(NAME, data_dir, image_size=SIZE)
    return reader.Photographs(data_set, "train", data_dir, reader.Reading())


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


def memory_by_epoch(data_dir, examples, epochs):
    """Resident memory in MB after each epoch."""
    steps = examples // BATCH
    iterator = iterate(open_source(data_dir), workers=2, start=0, steps=steps * epochs)
    megabytes = []
    for k, _ in enumerate(iterator, start=1):
        if k % steps == 0:
            megabytes.append(round(resident_megabytes(), 1))
    iterator.close()
    return megabytes


def processor_seconds():
    """CPU time of this process's threads and of its living children, DataLoader's workers."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def pipelines(files, data_dir):
    """Returns {name: work(round_number)}, without the peers that can't be imported."""
    builders = {
        "simplejpeg": lambda: one_by_one(files, decoder="simplejpeg"),
        "simplejpeg, antialias": lambda: one_by_one(
            files, decoder="simplejpeg", interpolation="antialias"
        ),
        "pillow": lambda: one_by_one(files, decoder="pillow"),
        "torchvision, PIL": lambda: as_torchvision(files),
        "torchvision, uint8": lambda: as_torchvision(files, decode_jpeg=True),
        "stream, 1 thread": lambda: streamed(data_dir, 1, len(files)),
        "stream, 2 threads": lambda: streamed(data_dir, 2, len(files)),
        "tf.data": lambda: as_tf_data(files),
        "tf.data, TFRecords": lambda: as_tf_data(files, data_dir / "photographs.tfrecords"),
        "DataLoader, PIL": lambda: as_data_loader(files),
        "Grain, PIL": lambda: as_grain(files),
    }
    ways = {}
    for name, build in builders.items():
        try:
            ways[name] = build()
        except ImportError as error:
            print(f"{name}: left out, {error.name} can't be imported: {error}")
    return ways


def alternate(ways, rounds):
    """Returns the processor seconds of each round, by name, after a round that isn't timed."""
    seconds = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, work in ways.items():
            began = processor_seconds()
            work(round_number)
            if round_number:
                seconds[name].append(processor_seconds() - began)
    return seconds


def relative(seconds, to):
    """Throughput relative to another one's, medians of the rounds' ratios."""
    return {name: round(1 / timing.ratio(seconds, name, to), 3) for name in seconds}


def main(argv):
    print("host settings:", SETTINGS)  # those of every run: malloc treats images as large blocks
    options = flags.FLAGS
    every = jpegs(PREPARED, options.source)
    files = every[: options.images // BATCH * BATCH]
    with tempfile.TemporaryDirectory() as folder:
        data_dir = folder_of(every, Path(folder))
        first = statistics.median(first_batch_seconds(data_dir) for _ in range(options.rounds))
        megabytes = memory_by_epoch(data_dir, PREPARED * 9 // 10, options.epochs)
        seconds = alternate(pipelines(files, data_dir), options.rounds)
    rates = {name: round(len(files) / statistics.median(own)) for name, own in seconds.items()}
    references = [name for name in ("simplejpeg", "tf.data", "torchvision, uint8") if name in rates]
    ratios = {to: relative(seconds, to) for to in references}
    print(f"{'':22}{'images/s':>10}" + "".join(f"{'of ' + to:>24}" for to in ratios))
    for name, rate in rates.items():
        columns = (f"{own[name]:24.2f}" for own in ratios.values())
        print(f"{name:22}{rate:10}" + "".join(columns))
    print(f"first batch of {BATCH}: {first:.2f} s wall time")
    if megabytes:
        print(
            f"resident MB after each of {len(megabytes)} epochs: {', '.join(map(str, megabytes))}"
        )
    if options.out:
        figures = {
            "machine": timing.machine(),
            "source": "RGB JPEGs below --source" if options.source else "scikit-learn",
            "images_per_second_a_core": rates,
            "relative_to": ratios,
            "first_batch_seconds": first,
            "resident_megabytes": megabytes,
        }
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
