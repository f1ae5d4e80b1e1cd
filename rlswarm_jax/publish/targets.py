"""Where weights are published, behind one small protocol: a model hub, a directory, or what fsspec can write to.

All are content-addressed: a directory and a store get a folder that the weights' hash names, a hub a commit. So
whatever was cut off can be begun again, and the same weights twice are there once. No secret is ever a part of an
address: the hub's own login or its environment has its token, and a store's client knows its own.
"""

import contextlib
import dataclasses
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from rlswarm_jax.errors import MAY_PASS, UsageError
from rlswarm_jax.files import FULL

HUB = "hf://"
WANTED = "hf://USER/NAME of a model hub, a directory, or a URL such as s3://BUCKET/FOLDER (without a password in it)"
LAST = ("config.json", "adapter_config.json")  # without its own a folder is no checkpoint: it comes when all is there
TENSORS = (".safetensors", ".safetensors.index.json")
STALLED = 60.0  # seconds without a byte after which a hub's connection is given up
_REPO = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,128}))?", re.ASCII)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(?=://)")


class PublishError(UsageError):
    """Weights could not be published, or fetched; the message is one sentence that holds no secret."""


class AwayError(PublishError):
    """The same, for now: what was asked is away, or has no room."""

    code = MAY_PASS


class Target(Protocol):
    """A place for published weights."""

    def check(self) -> None:
        """Raises PublishError for what would go wrong for sure, such as a token that is none."""

    def put(self, folder: Path, name: str, private: bool, message: str) -> str:
        """Sends all files of a folder as one publication, whole or not at all; returns the URI that gives it.

        name: of the publication, by its content. message: of the commit. What is there already is not sent again.
        Raises PublishError.
        """

    def get(self, into: Path) -> Path:
        """A folder with what holds the weights, fetched into another one where it is not on this machine.

        Raises PublishError.
        """


def read(text: str) -> Target | None:
    """What an address names; None if it is none, or holds a secret."""
    if text.startswith(HUB):
        found = _REPO.fullmatch(text[len(HUB) :])
        return Hub(found[1], found[2] or "") if found and ".." not in text and "--" not in found[1] else None
    if not text or "\0" in text or "::" in text:
        return None
    if not (scheme := _SCHEME.match(text)):
        return Folder(Path(text).expanduser())
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    if "@" in parts.netloc or parts.query or parts.fragment:
        return None
    if scheme[0] == "file":
        return Folder(Path(parts.path)) if parts.path.startswith("/") and not parts.netloc else None
    return Store(text.rstrip("/")) if parts.netloc or parts.path.strip("/") else None


def holds_weights(file: str) -> bool:
    """Whether a file's name is one of those that say what weights are."""
    return file.endswith(TENSORS) or file in LAST


@dataclasses.dataclass(frozen=True)
class Folder:
    """A directory: a publication is a folder in it, which is there as a whole or not."""

    path: Path

    def check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise PublishError(f"{self.path} is there already, and no directory: publish to another.")

    def put(self, folder: Path, name: str, private: bool, message: str) -> str:
        self.check()
        there, partial = self.path.absolute() / name, self.path / f".{name}.partial"
        if not there.is_dir():
            try:
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                self.path.mkdir(parents=True, exist_ok=True)
                shutil.copytree(folder, partial)
                _sync(partial)
                partial.rename(there)
            except (OSError, shutil.Error) as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise AwayError(f"cannot publish to {self.path}: {_of_disk(error)}.") from None
        return there.as_uri()

    def get(self, into: Path) -> Path:
        if not self.path.is_dir():
            raise PublishError(f"there are no weights at {self.path}: it is no directory.")
        return self.path


@dataclasses.dataclass(frozen=True)
class Store:
    """Whatever fsspec has a filesystem for: S3, GCS, Azure, SFTP. Its client is the user's to install and to log in."""

    url: str

    def check(self) -> None:
        self._open()

    def put(self, folder: Path, name: str, private: bool, message: str) -> str:
        fs, root = self._open()
        files = sorted((path for path in folder.iterdir()), key=lambda path: (path.name in LAST, path.name))
        with _stores_errors(self.url):
            fs.makedirs(f"{root}/{name}", exist_ok=True)
            for path in files:
                there = f"{root}/{name}/{path.name}"
                sent = path.name.endswith(TENSORS) and fs.exists(there) and fs.size(there) == path.stat().st_size
                if not sent:
                    fs.put_file(str(path), there)
        return f"{self.url}/{name}"

    def get(self, into: Path) -> Path:
        fs, root = self._open()
        with _stores_errors(self.url):
            names = {str(one).rstrip("/").rpartition("/")[2] for one in fs.ls(root, detail=False)}
            for name in sorted(filter(holds_weights, names)):
                fs.get_file(f"{root}/{name}", str(into / name))
        return into

    def _open(self) -> tuple[Any, str]:
        import fsspec

        with _stores_errors(self.url):
            fs, root = fsspec.core.url_to_fs(self.url)
        return fs, str(root).rstrip("/")


@dataclasses.dataclass(frozen=True)
class Hub:
    """A repository of a model hub, huggingface.co or what HF_ENDPOINT names; revision: "" is its newest.

    A publication is one commit, in which weights of before are taken away.
    """

    repo: str
    revision: str = ""

    def check(self) -> None:
        if self.revision:
            raise PublishError(f"hf://{self.repo} is published to without a revision: leave @{self.revision} out.")
        with self._errors():
            self._api().whoami()

    def put(self, folder: Path, name: str, private: bool, message: str) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with self._errors():
            api = self._api()
            api.create_repo(self.repo, private=private or None, exist_ok=True)
            if private and not api.model_info(self.repo).private:
                raise PublishError(f"hf://{self.repo} is public: make it private, or publish to another repository.")
            files = sorted(path.name for path in folder.iterdir())
            old = [one for one in api.list_repo_files(self.repo) if "/" not in one and holds_weights(one)]
            changes: list[Any] = [CommitOperationAdd(one, folder / one) for one in files]
            changes += [CommitOperationDelete(one) for one in sorted(set(old) - set(files))]
            made = api.create_commit(self.repo, changes, commit_message=message)
        return f"hf://{self.repo}@{made.oid}"

    def get(self, into: Path) -> Path:
        import huggingface_hub

        patterns = [f"*{end}" for end in TENSORS] + list(LAST)
        with self._errors():
            _bound()
            huggingface_hub.HfApi().snapshot_download(  # never from the cache: what is asked is what the hub has
                self.repo,
                revision=self.revision or None,
                local_dir=into / "hub",
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
            )
        return into / "hub"

    def _api(self) -> Any:
        import huggingface_hub

        _bound()
        if huggingface_hub.get_token() is None:
            raise PublishError("there is no token for the hub: log in by hf auth login, or set HF_TOKEN.")
        return huggingface_hub.HfApi()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except PublishError:
            raise
        except Exception as error:  # the hub client raises from half a dozen unrelated libraries
            raise _failure(self.repo, error) from None


def quiet() -> None:
    """No progress bars, nor what the hub's client says of its own: for whoever has a log to keep."""
    import huggingface_hub.utils

    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity_error()


def _bound() -> None:
    """The hub's client waits for ever by itself."""
    import huggingface_hub

    huggingface_hub.get_session().timeout = STALLED


def _failure(repo: str, error: BaseException) -> PublishError:
    """What went wrong at a hub, in a sentence: nothing of the request, which has the token, or of signed addresses."""
    from huggingface_hub import constants, errors

    host = urlsplit(constants.ENDPOINT).hostname or "hub"
    causes = [error]
    while causes[-1].__cause__ is not None and len(causes) < 8:  # an upload's own is below the library's
        causes.append(causes[-1].__cause__)
    status = next((one.response.status_code for one in causes if isinstance(one, errors.HfHubHTTPError)), None)
    if status is None:  # of the library beneath, for which it raises no error of its own
        found = (getattr(getattr(one, "response", None), "status_code", None) for one in causes)
        status = next((code for code in found if code is not None), None)
    if status == 401:
        why = "it is wrong or has expired; log in by hf auth login, or set HF_TOKEN"
        return PublishError(f"{host} does not take the token: {why}.")
    if status in (403, 404):
        why = "check its name, and what the token may do"
        return PublishError(f"{host} does not let this token at hf://{repo} ({status}): {why}.")
    if status is not None:
        return AwayError(f"{host} answers {status} for hf://{repo}: it may pass.")
    if any(isinstance(one, errors.OfflineModeIsEnabled) for one in causes) or constants.is_offline_mode():
        return PublishError(f"{host} is not asked, because HF_HUB_OFFLINE is set.")
    if disk := next((one for one in causes if isinstance(one, OSError) and one.errno in FULL), None):
        return AwayError(f"what {host} has does not fit on the disk: {_of_disk(disk)}.")
    cause = type(causes[-1])
    if issubclass(cause, OSError) or cause.__module__.startswith("http"):  # httpx, and httpcore below
        return AwayError(f"{host} cannot be reached, or breaks off ({cause.__name__}): it may pass.")
    return PublishError(f"{host} says of hf://{repo} what its client does not understand ({cause.__name__}).")


@contextlib.contextmanager
def _stores_errors(url: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise PublishError(f"nothing here can open {url}: {_line(error)}.") from None
    except Exception as error:  # each store's client has errors of its own
        raise PublishError(f"cannot use {url}: {_line(error)}.") from None


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__


def _of_disk(error: OSError) -> str:
    if isinstance(error, shutil.Error):  # of all files, each with source, place and reason
        full = any(os.strerror(errno.ENOSPC) in str(reason) for *_, reason in error.args[0])
        return os.strerror(errno.ENOSPC) if full else str(error.args[0][0][-1])
    return error.strerror or str(error)


def _sync(folder: Path) -> None:
    """What is renamed is on the disk, also if the power goes."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def fetched(target: Target) -> Iterator[Path]:
    """A publication's weights, here for as long as the `with` block lasts. Raises PublishError."""
    with tempfile.TemporaryDirectory(prefix="rlswarm-weights-") as folder:
        yield target.get(Path(folder))
