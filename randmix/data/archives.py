"""Original archives of a data set: located in a directory or downloaded, and verified.

Archives are verified against TFDS's own checksums. TFDS's downloader isn't used: it sets no timeout
and retries a dead network for minutes.
"""

import hashlib
import http.client
import os
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from randmix.errors import UserError

# A download is abandoned after this many seconds without an answer or a byte.
TIMEOUT = 20
_NETWORK = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)

# SHA-256 of the archives in Debian's package dataset-fashion-mnist: upstream's compressed data with
# other gzip headers, without the files' names and times.
_DEBIANS = {
    "t10k-images": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    "train-images": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
}
_WHERE_TO_GET = {
    "fashion_mnist": "; on Debian and Ubuntu `apt-get install dataset-fashion-mnist` provides "
    "them: --manual_dir=/usr/share/datasets/fashion-mnist"
}


def locate(
    name: str,
    url_infos: Mapping[str, Any],
    *,
    downloads: Path | None,
    manual_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> dict[str, Path]:
    """Returns the verified archives of a data set: file name -> path.

    Args:
        name: the data set's name.
        url_infos: URL -> `tfds.download.checksums.UrlInfo` with filename, size and SHA-256.
        downloads: directory that keeps downloaded archives, created if needed. None for ImageNet's,
            which only registered users may download, and which are too large to be read twice: of
            these the sizes are verified.
        manual_dir: the user's directory that contains all archives, never written to; None to
            download them.
        progress: whether to show a progress bar while downloading, if stderr is a terminal.

    Raises:
        UserError: an archive is missing, differs from the one that TFDS expects, or can't be
            downloaded.
    """
    names = [info.filename for info in url_infos.values()]
    if manual_dir is not None:
        folder = Path(manual_dir).expanduser()
        if missing := [file for file in names if not (folder / file).is_file()]:
            hint = _WHERE_TO_GET.get(name, "")
            raise UserError(f"{name}: {folder} lacks {', '.join(missing)}{hint}")
    elif downloads is not None:
        folder = downloads
        folder.mkdir(parents=True, exist_ok=True)
        for url, info in url_infos.items():
            archive = folder / info.filename
            if not (archive.is_file() and _sha256(archive) == info.checksum):
                _download(name, url, archive, names, progress)
    else:
        raise UserError(
            f"{name} needs {' and '.join(names)}, which only registered users can download "
            "(https://image-net.org/download-images); give their directory with --manual_dir=DIR, "
            "or that of the extracted images with --source=DIR"
        )
    for info in url_infos.values():
        _verify(name, folder / info.filename, info, by_size=downloads is None)
    return {file: folder / file for file in names}


def _verify(name: str, archive: Path, info: Any, *, by_size: bool) -> None:
    size = archive.stat().st_size
    if by_size:
        if size != info.size:
            raise UserError(
                f"{archive} is truncated or a different file: "
                f"expected {int(info.size):,} bytes, found {size:,}; download it again"
            )
        return
    debians = _DEBIANS[info.filename.split("-idx")[0]] if name == "fashion_mnist" else None
    if (found := _sha256(archive)) not in (info.checksum, debians):
        raise UserError(
            f"{archive} is damaged or a different file: "
            f"expected SHA-256 {info.checksum} ({int(info.size)} bytes), "
            f"found {found} ({size} bytes); download it again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(name: str, url: str, archive: Path, names: list[str], progress: bool) -> None:
    """Downloads an archive; what a stopped program leaves of it has another checksum."""
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT) as response,
            tqdm.wrapattr(
                response, "read", desc=archive.name, leave=False, disable=None if progress else True
            ) as reader,
            archive.open("wb") as file,
        ):
            shutil.copyfileobj(reader, file)
    except _NETWORK as error:
        archive.unlink(missing_ok=True)
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{name}: cannot download {url} ({reason}); put {', '.join(names)} into a directory "
            f"and give it with --manual_dir=DIR{_WHERE_TO_GET.get(name, '')}"
        ) from error
