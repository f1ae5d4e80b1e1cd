"""Each kind of place takes a publication whole, once, and says in one sentence why it does not."""

import errno
import os
import shutil
from pathlib import Path

import fsspec
import huggingface_hub
import pytest

from rlswarm_jax.publish import targets
from rlswarm_jax.publish.targets import Folder, PublishError, Store
from tests.publish.hub import TOKEN

WEIGHTS = bytes(range(256)) * 400


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    files = {"model.safetensors": WEIGHTS, "config.json": b"{}", "README.md": b"# card", "tokenizer.json": b"[]"}
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf://ada/qwen", targets.Hub("ada/qwen")),
        ("hf://ada/qwen@0123abcd", targets.Hub("ada/qwen", "0123abcd")),
        ("out/there", Folder(Path("out/there"))),
        ("file:///out", Folder(Path("/out"))),
        ("s3://bucket/folder/", Store("s3://bucket/folder")),
        ("memory://a", Store("memory://a")),
        ("", None),
        ("hf://qwen", None),
        ("hf://ada/qwen/file", None),
        ("hf://ada/../qwen", None),
        ("hf:///qwen", None),
        ("sftp://ada:secret@host/folder", None),
        ("s3://key@bucket/folder", None),
        ("https://host/folder?X-Amz-Signature=1", None),
        ("simplecache::s3://bucket", None),
        ("file://host/folder", None),
        ("memory://", None),
        ("a\0b", None),
    ],
)
def test_an_address_names_one_place_or_is_none_and_never_holds_a_secret(text, found):
    assert targets.read(text) == found


class TestHub:
    def test_a_publication_is_one_commit_and_comes_back_as_it_went(self, hub, model, tmp_path):
        target = targets.read("hf://ada/qwen")
        target.check()
        uri = target.put(model, "0123", False, "round 3")
        (oid, files) = hub.repos["ada/qwen"].commits[-1]
        assert uri == f"hf://ada/qwen@{oid}" and len(hub.repos["ada/qwen"].commits) == 2
        assert files == content(model) | {".gitattributes": files[".gitattributes"]}
        assert not hub.repos["ada/qwen"].private and len(hub.verified) == 1
        with targets.fetched(targets.read(uri)) as there:  # without what is not needed to hash
            assert content(there) == {name: files[name] for name in ("model.safetensors", "config.json")}

    def test_the_same_again_is_not_sent_again(self, hub, model):
        first = targets.read("hf://ada/qwen").put(model, "0123", False, "m")
        assert targets.read("hf://ada/qwen").put(model, "0123", False, "m") == first
        assert len(hub.repos["ada/qwen"].commits) == 2 and hub.count("PUT", "/storage/") == 1

    def test_weights_of_another_shape_do_not_stay_beside_the_new(self, hub, model):
        target = targets.read("hf://ada/qwen")
        target.put(model, "0123", False, "m")
        (model / "model.safetensors").rename(model / "adapter_model.safetensors")
        (model / "config.json").rename(model / "adapter_config.json")
        target.put(model, "0124", False, "m")
        assert hub.repos["ada/qwen"].commits[-1][1].keys() == content(model).keys() | {".gitattributes"}

    def test_private_means_private(self, hub, model):
        targets.read("hf://ada/mine").put(model, "0123", True, "m")
        assert hub.repos["ada/mine"].private
        targets.read("hf://ada/open").put(model, "0123", False, "m")
        with pytest.raises(PublishError, match="hf://ada/open is public: make it private"):
            targets.read("hf://ada/open").put(model, "0124", True, "m")
        assert len(hub.repos["ada/open"].commits) == 2

    @pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
    @pytest.mark.parametrize("where", ["/api/repos/create", "/commit/"])
    def test_what_a_hub_refuses_is_a_sentence_without_the_token(self, hub, model, status, where):
        hub.faults = lambda method, path: status if where in path else None
        with pytest.raises(PublishError) as caught:
            targets.read("hf://ada/qwen").put(model, "0123", False, "m")
        said = str(caught.value)
        assert "127.0.0.1" in said and TOKEN not in said and "\n" not in said and said.endswith(".")
        assert ("token" in said) == (status in (401, 403, 404)) and (str(status) in said or status == 401)
        hub.faults = lambda method, path: None
        assert targets.read("hf://ada/qwen").put(model, "0123", False, "m")

    def test_a_storage_that_fails_once_is_asked_again_by_the_library(self, hub, model):
        left = [503]
        hub.faults = lambda method, path: left.pop() if method == "PUT" and left else None
        assert targets.read("hf://ada/qwen").put(model, "0123", False, "m")
        assert hub.count("PUT", "/storage/") == 2

    def test_an_expired_token_and_none(self, hub, model, monkeypatch):
        hub.token = "another"
        with pytest.raises(PublishError, match=r"does not take the token: it is wrong or has expired; log in"):
            targets.read("hf://ada/qwen").check()
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        with pytest.raises(PublishError, match="there is no token for the hub: log in"):
            targets.read("hf://ada/qwen").check()

    def test_nobody_there_and_not_asked(self, hub, model, monkeypatch):
        hub.__exit__()
        with pytest.raises(PublishError, match=r"127.0.0.1 cannot be reached, or breaks off \(ConnectError\)"):
            targets.read("hf://ada/qwen").put(model, "0123", False, "m")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(PublishError, match="because HF_HUB_OFFLINE is set"):
            targets.read("hf://ada/qwen").check()
        with pytest.raises(PublishError), targets.fetched(targets.read("hf://ada/qwen")):
            pass

    def test_a_hub_that_says_nothing_more_is_given_up(self, hub, monkeypatch):
        """One request of the library's session, which by itself waits for ever."""
        monkeypatch.setattr(targets, "STALLED", 0.3)
        hub.slow, target = 30.0, targets.read("hf://ada/qwen")
        with pytest.raises(PublishError, match=r"breaks off \(\w*Timeout\)"), target._errors():
            target._api()
            huggingface_hub.get_session().put(f"{hub.url}/storage/x", content=WEIGHTS * 200)


class TestFolder:
    def test_a_publication_is_a_folder_named_by_its_content(self, model, tmp_path):
        uri = targets.read(str(tmp_path / "out")).put(model, "0123", False, "m")
        assert uri == (tmp_path / "out" / "0123").as_uri() and content(tmp_path / "out" / "0123") == content(model)
        assert targets.read(str(tmp_path / "out")).put(model, "0123", False, "m") == uri
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["0123"]
        with targets.fetched(targets.read(uri)) as there:
            assert there == tmp_path / "out" / "0123"

    def test_what_a_kill_left_is_begun_again(self, model, tmp_path):
        (tmp_path / "out" / ".0123.partial").mkdir(parents=True)
        (tmp_path / "out" / ".0123.partial" / "model.safetensors").write_bytes(b"half")
        targets.read(str(tmp_path / "out")).put(model, "0123", False, "m")
        assert content(tmp_path / "out" / "0123") == content(model)
        assert len(list((tmp_path / "out").iterdir())) == 1

    def test_a_full_disk_is_a_sentence_and_leaves_nothing(self, model, tmp_path, monkeypatch):
        def full(source, to, *_, **__):
            Path(to).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(to))

        with monkeypatch.context() as patched:
            patched.setattr(shutil, "copy2", full)
            patched.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
            with pytest.raises(PublishError, match=r"cannot publish to .*/out: No space left on device\."):
                targets.read(str(tmp_path / "out")).put(model, "0123", False, "m")
        assert not list((tmp_path / "out").iterdir())
        assert targets.read(str(tmp_path / "out")).put(model, "0123", False, "m")

    def test_a_file_in_the_way(self, model, tmp_path):
        (tmp_path / "out").write_text("mine")
        with pytest.raises(PublishError, match="is there already, and no directory"):
            targets.read(str(tmp_path / "out")).put(model, "0123", False, "m")
        assert (tmp_path / "out").read_text() == "mine"


class TestStore:
    @pytest.fixture(autouse=True)
    def empty(self):
        fsspec.filesystem("memory").store.clear()

    def test_it_comes_back_as_it_went_and_its_config_comes_last(self, model, monkeypatch):
        fs, sent = fsspec.filesystem("memory"), []
        put = type(fs).put_file
        monkeypatch.setattr(type(fs), "put_file", lambda self, a, b, **more: (sent.append(b), put(self, a, b, **more)))
        uri = targets.read("memory://bucket/models").put(model, "0123", False, "m")
        assert uri == "memory://bucket/models/0123" and sent[-1].endswith("config.json") and len(sent) == 4
        with targets.fetched(targets.read(uri)) as there:
            assert content(there) == {n: r for n, r in content(model).items() if n.endswith(("safetensors", "g.json"))}
        sent.clear()
        targets.read("memory://bucket/models").put(model, "0123", False, "m")
        assert sent and not any(one.endswith("safetensors") for one in sent)
        fs.pipe_file("/bucket/models/0123/model.safetensors", b"half")  # what a kill left
        targets.read("memory://bucket/models").put(model, "0123", False, "m")
        assert fs.cat_file("/bucket/models/0123/model.safetensors") == WEIGHTS

    def test_what_its_client_says_is_a_sentence(self, model, monkeypatch):
        def refuse(*_, **__):
            raise RuntimeError("Unable to locate credentials\nand much more")

        monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", refuse)
        with pytest.raises(PublishError) as caught:
            targets.read("memory://bucket").put(model, "0123", False, "m")
        assert str(caught.value) == "cannot use memory://bucket: RuntimeError: Unable to locate credentials."

    def test_a_client_that_is_not_installed(self, model):
        with pytest.raises(PublishError, match="nothing here can open abfs://there"):
            targets.read("abfs://there/folder").check()
        with pytest.raises(PublishError, match="cannot use nowhere://a"):
            targets.read("nowhere://a").check()
