"""Original archives of a data set: located in a directory or downloaded, and verified.

Archives are verified against TFDS's own checksums. TFDS's downloader isn't used: it sets no timeout
and retries a dead network for minutes.
"""

import hashlib
import http.client
import os
import struct
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from randmix.errors import UserError
from randmix.runtime import durable, signals

# A download is abandoned after this many seconds without an answer or a byte.
TIMEOUT = 20

# Debian's package dataset-fashion-mnist contains upstream's compressed data with normalised gzip
# headers. Upstream's headers have the file's name and these times; TFDS's checksums verify the
# restored files.
_UPSTREAM_MTIMES = {
    "train-images-idx3-ubyte.gz": 1504176606,
    "train-labels-idx1-ubyte.gz": 1504176606,
    "t10k-images-idx3-ubyte.gz": 1504176627,
    "t10k-labels-idx1-ubyte.gz": 1504176627,
}

_WHERE_TO_GET = {
    "fashion_mnist": "; on Debian and Ubuntu `apt-get install dataset-fashion-mnist` provides "
    "them: --manual_dir=/usr/share/datasets/fashion-mnist"
}


def stage(
    name: str,
    url_infos: Mapping,
    directory: Path,
    *,
    downloads: Path,
    manual_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> None:
    """Fills a directory with the verified archives of a data set, as links if possible.

    Args:
        name: the data set's name, for messages.
        url_infos: URL -> `tfds.download.checksums.UrlInfo` with filename, size and SHA-256.
        directory: an existing directory, which will be TFDS's manual_dir.
        downloads: directory that keeps downloaded archives; created if needed.
        manual_dir: the user's directory that contains all archives, never written to; None to
            download them.
        progress: whether to show a progress bar while downloading.

    Raises:
        UserError: an archive is missing, differs from the one that TFDS expects, or can't be
            downloaded.
    """
    if manual_dir is not None:
        manual_dir = Path(manual_dir).expanduser()
        if missing := [
            i.filename for i in url_infos.values() if not (manual_dir / i.filename).is_file()
        ]:
            hint = _WHERE_TO_GET.get(name, "")
            raise UserError(f"{name}: {manual_dir} lacks {', '.join(missing)}{hint}")
    for url, info in url_infos.items():
        staged = directory / info.filename
        if manual_dir is None:
            archive = downloads / info.filename
            if not (archive.is_file() and _sha256(archive) == info.checksum):
                _download(name, url, archive, [i.filename for i in url_infos.values()], progress)
        else:
            archive = manual_dir / info.filename
            restored = restore_gzip_header(archive)
            if restored is not None and hashlib.sha256(restored).hexdigest() == info.checksum:
                staged.write_bytes(restored)
                continue
        _verify(archive, info)
        staged.symlink_to(archive.resolve())


def stage_manual(
    name: str, url_infos: Mapping, directory: Path, *, manual_dir: str | os.PathLike | None
) -> None:
    """Links archives that only the user may download, and that are too large to be read twice.

    TFDS lists checksums of ImageNet's archives but doesn't verify them. This function checks their
    sizes, before anything is read.

    Args:
        name: the data set's name, for messages.
        url_infos: see `stage`.
        directory: an existing directory, which will be TFDS's manual_dir.
        manual_dir: the user's directory that contains all archives, never written to.

    Raises:
        UserError: there is no such directory, or an archive is missing or has the wrong size.
    """
    names = [info.filename for info in url_infos.values()]
    if manual_dir is None:
        raise UserError(
            f"{name} needs {' and '.join(names)}, which only registered users can download "
            "(https://image-net.org/download-images); give their directory with --manual_dir=DIR"
        )
    manual_dir = Path(manual_dir).expanduser()
    if missing := [file for file in names if not (manual_dir / file).is_file()]:
        raise UserError(f"{name}: {manual_dir} lacks {', '.join(missing)}")
    for info in url_infos.values():
        archive = manual_dir / info.filename
        if (size := archive.stat().st_size) != info.size:
            raise UserError(
                f"{archive} is truncated or a different file: "
                f"expected {int(info.size):,} bytes, found {size:,}"
            )
        (directory / info.filename).symlink_to(archive.resolve())


def restore_gzip_header(archive: Path) -> bytes | None:
    """Restores upstream's gzip header in an archive of Fashion-MNIST that has a normalised one.

    Returns:
        The bytes of the restored file; None if the header isn't normalised or the file's name is
        unknown.
    """
    mtime = _UPSTREAM_MTIMES.get(archive.name)
    with archive.open("rb") as file:
        header = file.read(10)
        # RFC 1952: magic, method, flags, time (4 bytes), extra flags, system; with flag 8 a name
        # follows.
        if mtime is None or len(header) < 10 or header[:4] != b"\x1f\x8b\x08\x00":
            return None
        name = archive.name.removesuffix(".gz").encode() + b"\0"
        return b"\x1f\x8b\x08\x08" + struct.pack("<I", mtime) + header[8:] + name + file.read()


def _verify(archive: Path, info) -> None:
    found, size = _sha256(archive), archive.stat().st_size
    if found != info.checksum:
        raise UserError(
            f"{archive} is damaged or a different file: "
            f"expected SHA-256 {info.checksum} ({int(info.size)} bytes), "
            f"found {found} ({size} bytes)"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(name: str, url: str, archive: Path, names: list[str], progress: bool) -> None:
    """Downloads to a temporary name first, so that `archive` is never incomplete."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(archive.name + ".part")
    bar = tqdm(
        desc=archive.name,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None if progress else True,
    )
    try:
        with signals.clean_up(part.unlink), part.open("wb") as file, bar:
            for block in _blocks(url):
                file.write(block)
                bar.update(len(block))
        durable.flush(part)
        durable.move(part, archive)
    except ConnectionError as error:
        raise UserError(
            f"{name}: cannot download {url} ({error}); put {', '.join(names)} into a directory "
            f"and give it with --manual_dir=DIR{_WHERE_TO_GET.get(name, '')}"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _blocks(url: str) -> Iterator[bytes]:
    """Yields the bytes at a URL; any network failure raises a ConnectionError."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            while block := response.read(1 << 20):
                yield block
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(str(reason) or type(error).__name__) from error
