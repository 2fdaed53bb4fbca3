"""scale.s3: copies to and from a server on loopback that speaks S3's protocol; faults, kills and hostile archives."""

import io
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from errno import ENOSPC
from pathlib import Path

import pytest
from phantoms import phantom, write_raw
from s3_server import Fault
from three_at_once import at_once

import kaggle_utils
from kaggle_utils.cli import main
from kaggle_utils.files import LOCK, locked
from kaggle_utils.scale import s3, s3_client, s3_zip

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")

MB = 1 << 20


def contents(client, prefix: str = "") -> dict[str, bytes]:
    listed = client.list_objects_v2(Bucket="bkt", Prefix=prefix).get("Contents", ())
    return {each["Key"]: client.get_object(Bucket="bkt", Key=each["Key"])["Body"].read() for each in listed}


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Small files, an empty one, odd names, and one of 2 parts and a bit."""
    files = {
        "a.png": noise(1000),
        "ward 1/b+c.png": noise(2000, 1),
        "ward 1/ünïcode &?#%.txt": b"x",
        "empty": b"",
        "large.bin": noise(17 * MB, 2),
    }
    for name, data in files.items():
        (tmp_path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "films" / name).write_bytes(data)
    return tmp_path / "films"


def unfinished(client) -> list:
    return client.list_multipart_uploads(Bucket="bkt").get("Uploads", [])


def start(*arguments) -> subprocess.Popen:
    """The command line in a process of its own, to be killed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(kaggle_utils.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "kaggle_utils", "s3", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- there and back --------------------------------------------------------------------------------------------------


def test_a_folder_goes_up_and_comes_back_byte_for_byte(folder, client, tmp_path):
    there, back = s3.upload(folder, "s3://bkt/set"), s3.download("s3://bkt/set/", tmp_path / "back")
    assert files_below(tmp_path / "back") == files_below(folder)
    assert contents(client) == {f"set/{name}": data for name, data in files_below(folder).items()}
    assert (there.files, there.skipped) == (back.files, back.skipped) == (
        5,
        0,
    ) and there.bytes == back.bytes == 17 * MB + 3001


def test_the_second_run_moves_nothing(folder, proxy, tmp_path):
    for move in (lambda: s3.upload(folder, "s3://bkt/set"), lambda: s3.download("s3://bkt/set", tmp_path / "back")):
        assert move().files == 5
        proxy.log.clear()
        assert (again := move()).files == 0 and again.skipped == 5
        assert not proxy.asked("PUT|POST") and not proxy.asked("GET", r"/bkt/set/")


def test_what_changed_is_moved_even_where_size_and_time_are_the_same(folder, client, tmp_path):
    s3.upload(folder, "s3://bkt/set")
    s3.download("s3://bkt/set", tmp_path / "back")
    path, times = folder / "large.bin", (folder / "large.bin").stat()
    data = bytearray(path.read_bytes())
    data[9 * MB] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert s3.upload(folder, "s3://bkt/set").files == 1
    assert s3.download("s3://bkt/set", tmp_path / "back").files == 1
    assert (tmp_path / "back" / "large.bin").read_bytes() == data


def test_objects_of_other_programs_are_told_by_their_etag(client, proxy, tmp_path):
    from boto3.s3.transfer import TransferConfig

    parts = TransferConfig(multipart_threshold=5 * MB, multipart_chunksize=6 * MB)
    client.upload_fileobj(io.BytesIO(noise(13 * MB)), "bkt", "set/parts", Config=parts)
    client.put_object(Bucket="bkt", Key="set/whole", Body=b"one piece")
    assert s3.download("s3://bkt/set", tmp_path).files == 2
    assert s3.download("s3://bkt/set", tmp_path).files == 0
    (tmp_path / "whole").write_bytes(b"one peace")
    (tmp_path / "parts").write_bytes(noise(13 * MB, 1))
    assert s3.download("s3://bkt/set", tmp_path).files == 2
    assert (tmp_path / "parts").read_bytes() == noise(13 * MB)


def test_one_file_and_one_object_are_moved_alone(client, tmp_path):
    (tmp_path / "w.bin").write_bytes(b"weights")
    s3.upload(tmp_path / "w.bin", "s3://bkt/models")
    client.put_object(Bucket="bkt", Key="models/w.bin.bak", Body=b"not this one")
    assert s3.download("s3://bkt/models/w.bin", tmp_path / "back").files == 1
    assert files_below(tmp_path / "back") == {"w.bin": b"weights"}


def test_a_prefix_is_a_folder_and_not_the_beginning_of_a_name(client, tmp_path):
    for key in ("set/a", "set2/b", "set/", "set/sub/"):
        client.put_object(Bucket="bkt", Key=key, Body=b"")
    s3.download("s3://bkt/set", tmp_path)
    assert list(files_below(tmp_path)) == ["a"]


@pytest.mark.parametrize("key", ["set/../../evil", "set//etc/passwd", "set/C:/evil", "set/x/..\\..\\evil"])
def test_a_key_that_leads_out_of_the_folder_is_refused_before_anything_is_fetched(key, client, tmp_path):
    client.put_object(Bucket="bkt", Key="set/good", Body=b"")
    client.put_object(Bucket="bkt", Key=key, Body=b"")
    with pytest.raises(ValueError, match="nothing was fetched"):
        s3.download("s3://bkt/set", tmp_path / "back")
    assert not files_below(tmp_path)


# --- faults ----------------------------------------------------------------------------------------------------------

FAULTS = {
    "500": dict(kind="status"),
    "503": dict(kind="status", status=503, code="SlowDown"),
    "reset": dict(kind="reset"),
    "truncated": dict(kind="truncate"),
    "slow": dict(kind="slow", seconds=3),
}


@pytest.fixture
def impatient(monkeypatch):
    """Waits of boto3's that are counted in seconds are none here."""
    monkeypatch.setattr("botocore.retries.standard.RetryHandler._sleep", lambda *_: None, raising=False)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_what_breaks_in_each_kind_of_request_is_tried_again(
    fault, folder, proxy, client, tmp_path, impatient, monkeypatch
):
    monkeypatch.setattr(s3_client, "READ_S", 1.5 if fault == "slow" else 30)
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        archive.writestr("one", noise(9 * MB))
    for method in ("GET", "PUT", "POST", "HEAD"):
        if (method, fault) != ("HEAD", "truncated"):  # which has no body
            proxy.faults.append(Fault(method=method, times=1 + (fault != "slow"), **FAULTS[fault]))
    s3.upload(folder, "s3://bkt/set")
    for method, path in (("GET", "/bkt/set/"), ("HEAD", "")):
        proxy.faults.append(
            Fault(method=method, path=path, times=(method, fault) != ("HEAD", "truncated"), **FAULTS[fault])
        )
    s3.download("s3://bkt/set", tmp_path / "back")
    proxy.faults += [Fault(method=method, path="/bkt/", times=1, **FAULTS[fault]) for method in ("GET", "PUT")]
    s3.unzip("s3://bkt/set/set.zip", "s3://bkt/out")
    assert not any(f.times for f in proxy.faults if f.method != "HEAD")
    assert files_below(tmp_path / "back") == files_below(folder)
    assert contents(client, "out/") == {"out/one": noise(9 * MB)}
    s3.upload(
        folder, "s3://bkt/set"
    )  # where an answer was lost the server began an upload twice: the next run drops the first
    assert not unfinished(client)


def test_an_object_damaged_on_its_way_is_not_kept(client, proxy, tmp_path, impatient):
    (tmp_path / "large").write_bytes(noise(9 * MB))
    s3.upload(tmp_path / "large", "s3://bkt/set")
    proxy.faults.append(Fault("flip", "GET", "/bkt/set/large", times=1000))
    with pytest.raises(OSError, match="set/large: what came is not what its checksum says"):
        s3.download("s3://bkt/set", tmp_path / "back")
    assert not files_below(tmp_path / "back")
    proxy.faults[:] = [Fault("flip", "GET", "/bkt/set/large")]
    s3.download("s3://bkt/set", tmp_path / "back")
    assert files_below(tmp_path / "back") == {"large": noise(9 * MB)}


@pytest.mark.parametrize("size", [1000, 9 * MB], ids=["one request", "parts"])
def test_an_object_that_is_replaced_while_it_is_fetched_comes_as_the_new_one(client, tmp_path, monkeypatch, size):
    client.put_object(Bucket="bkt", Key="set/film", Body=noise(size))
    get, connect = [], s3.connect

    def connected():
        real = connect()
        original = real._make_api_call

        def call(operation, arguments):
            answer = original(operation, arguments)
            if operation == "GetObject" and not get:
                get.append(1)
                client.put_object(Bucket="bkt", Key="set/film", Body=noise(size + 5, 1))
            return answer

        real._make_api_call = call
        return real

    monkeypatch.setattr(s3, "connect", connected)
    s3.download("s3://bkt/set", tmp_path)
    assert get and (tmp_path / "film").read_bytes() == noise(size + 5, 1)


def test_a_failed_upload_leaves_no_parts_behind_and_the_next_one_sends_what_is_missing(
    folder, proxy, client, impatient
):
    proxy.faults.append(Fault("status", "PUT", "partNumber=2", times=100))
    with pytest.raises(OSError, match="InternalError"):
        s3.upload(folder, "s3://bkt/set")
    assert not unfinished(client)
    there = set(contents(client))
    assert "set/large.bin" not in there
    proxy.faults.clear()
    assert s3.upload(folder, "s3://bkt/set").files == 5 - len(there)
    assert contents(client) == {f"set/{name}": data for name, data in files_below(folder).items()}


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def kill_and_repeat(proxy, arguments, wait, *, within, look=lambda: None):
    """Kills the command once a request of a kind was answered while those of another kind hang, looks at what is there,
    gives the command again, and returns what it said."""
    proxy.faults.append(Fault("slow", *within, times=100, seconds=20))
    process = start(*arguments)
    proxy.wait_for(*wait)
    time.sleep(0.3)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    look()
    proxy.faults.clear()
    proxy.log.clear()
    again = start(*arguments)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    return out


@pytest.mark.slow
def test_killed_upload_resumes_with_what_is_missing(folder, proxy, client):
    said = kill_and_repeat(proxy, ["upload", folder, "s3://bkt/set"], ("PUT", "a.png"), within=("PUT", "partNumber=3"))
    assert contents(client) == {f"set/{name}": data for name, data in files_below(folder).items()}
    assert "were there" in said and not proxy.asked("PUT", r"a\.png") and not unfinished(client)


@pytest.mark.slow
def test_killed_download_resumes_with_what_is_missing(folder, proxy, tmp_path):
    s3.upload(folder, "s3://bkt/set")
    proxy.log.clear()
    back, whole = tmp_path / "back", files_below(folder)

    def nothing_half_written():
        left = {name: data for name, data in files_below(back).items() if not name.endswith((".part", LOCK))}
        assert left and "large.bin" not in left and left.items() <= whole.items()

    kill_and_repeat(
        proxy,
        ["download", "s3://bkt/set", back],
        ("GET", r"/bkt/set/a\.png"),
        within=("GET", "large"),
        look=nothing_half_written,
    )
    assert files_below(back) == whole
    assert not proxy.asked("GET", r"/bkt/set/a\.png") and proxy.asked("GET", "large")


@pytest.mark.slow
def test_killed_unzip_resumes_with_what_is_missing(proxy, client):
    members = {"a/small": noise(1000), "b/large": noise(18 * MB, 1), "c/small": noise(2000, 2)}
    client.put_object(Bucket="bkt", Key="set.zip", Body=packed(members))
    kill_and_repeat(
        proxy, ["unzip", "s3://bkt/set.zip", "s3://bkt/out"], ("PUT", "out/a/small"), within=("PUT", "partNumber=2")
    )
    assert contents(client, "out/") == {f"out/{name}": data for name, data in members.items()}
    assert not proxy.asked("PUT", "out/a/small") and not unfinished(client)


# --- archives --------------------------------------------------------------------------------------------------------


def packed(members: dict, compression=zipfile.ZIP_DEFLATED) -> bytes:
    """An archive; names may be ZipInfo."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def put_archive(client, data: bytes) -> str:
    client.put_object(Bucket="bkt", Key="in/set.zip", Body=data)
    return "s3://bkt/in/set.zip"


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
    ids=zipfile.compressor_names.get,
)
def test_an_archive_is_unpacked_byte_for_byte_and_once(compression, client, proxy):
    members = {"films/a.png": noise(500), "films/sub/b c.png": b"x" * 3 * MB, "films/": b"", "empty": b"", "ünï": b"1"}
    members["large"] = noise(9 * MB if compression <= zipfile.ZIP_DEFLATED else MB)  # the others are slow
    archive = put_archive(client, packed(members, compression))
    done = s3.unzip(archive, "s3://bkt/out/")
    assert done.files == 5
    assert contents(client, "out/") == {f"out/{name}": data for name, data in members.items() if name != "films/"}
    proxy.log.clear()
    assert s3.unzip(archive, "s3://bkt/out").skipped == 5 and not proxy.asked("PUT|POST")


def test_a_member_that_changed_is_unpacked_again_alone(client):
    s3.unzip(put_archive(client, packed({"a": b"old", "b": b"same"})), "s3://bkt/out")
    assert s3.unzip(put_archive(client, packed({"a": b"new", "b": b"same"})), "s3://bkt/out").files == 1
    assert contents(client, "out/") == {"out/a": b"new", "out/b": b"same"}


def test_blocks_are_fetched_once_and_no_more_than_a_few_are_held(client, proxy, monkeypatch):
    monkeypatch.setattr(s3_zip, "PART", 256 << 10)
    archive = put_archive(client, packed({f"{n:02}": noise(300_000, n) for n in range(20)}, zipfile.ZIP_STORED))
    proxy.log.clear()
    s3.unzip(archive, "s3://bkt/out")
    asked = proxy.asked("GET", "in/set.zip")
    assert max(entry[3] for entry in asked) <= 256 << 10
    assert sum(entry[3] for entry in asked) < 1.6 * 20 * 300_000
    assert contents(client, "out/") == {f"out/{n:02}": noise(300_000, n) for n in range(20)}


def test_an_empty_archive_is_no_error(client):
    assert s3.unzip(put_archive(client, packed({})), "s3://bkt/out").files == 0


def test_zip64_is_read(client, monkeypatch):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open("a", "w", force_zip64=True) as member:
        member.write(b"64 bits")
    s3.unzip(put_archive(client, file.getvalue()), "s3://bkt/out")
    assert contents(client, "out/") == {"out/a": b"64 bits"}
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)  # instead of more members than 16 bits can count
    many = packed({f"{n}": b"" for n in range(5)})
    assert b"PK\6\6" in many and s3.unzip(put_archive(client, many), "s3://bkt/many").files == 5


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "\\\\host\\x", "C:/x", "c:x", "a\\..\\..\\x", ".."]
)
def test_zip_slip_is_refused_whole(name, client):
    with pytest.raises(ValueError, match="leads out of the target; nothing was unpacked"):
        s3.unzip(put_archive(client, packed({"good": b"", name: b"evil"})), "s3://bkt/out")
    assert list(contents(client)) == ["in/set.zip"]


def encrypted() -> bytes:
    data = bytearray(packed({"a": b"secret"}))
    data[6] |= 1  # flags of the local header, and of the directory's
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def overlapping() -> bytes:
    """As in D. Fifield's bombs: directory entries that share one member's bytes."""
    data = packed({"a": noise(100_000)}, zipfile.ZIP_STORED)
    at, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entries = b"".join(data[at:end].replace(b"a", bytes([98 + n])) for n in range(4))
    tail = bytearray(data[end:])
    tail[8:12] = (4).to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    return data[:at] + entries + bytes(tail)


def explosive() -> bytes:
    """Whose directory says that a kilobyte becomes 2 GB, as deflate can make it."""
    data = bytearray(packed({"a": bytes(1_000_000)}))
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = (2_000_000_000).to_bytes(4, "little")
    return bytes(data)


HOSTILE = {
    "explosive": (explosive, "2 GB in an archive of 0.0 MB, as in one made to explode"),
    "link": (lambda: packed({link("a"): b"/etc/passwd"}), "symbolic link"),
    "encrypted": (encrypted, "encrypted"),
    "truncated": (lambda: packed({"a": noise(50_000)})[:30_000], "not a zip file"),
    "no archive": (lambda: noise(5000), "not a zip file"),
    "empty file": (lambda: b"", "not a zip file"),
    "overlapping": (overlapping, "overlap"),
    "twice": (lambda: packed({"x/a": b"1", "x//a": b"2"}), "twice"),
    "itself": (lambda: packed({"set.zip": b""}), "own place"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archive_is_one_line_and_nothing_is_unpacked(case, client, capfd):
    make, reason = HOSTILE[case]
    archive = put_archive(client, make())
    before = contents(client)
    assert main(["s3", "unzip", archive, "s3://bkt/in"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"unet-lung s3: {archive}: ") and reason in line
    assert contents(client) == before


def test_a_name_that_is_in_the_archive_twice_is_refused(client):
    with pytest.warns(UserWarning, match="Duplicate"):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("a", b"1")
            archive.writestr("a", b"2")
    with pytest.raises(ValueError, match="'a' is in it twice"):
        s3.unzip(put_archive(client, data.getvalue()), "s3://bkt/out")


@pytest.mark.parametrize("size", [1000, 9 * MB], ids=["one request", "parts"])
def test_a_damaged_member_never_appears(size, client):
    data = bytearray(packed({"good": b"fine", "bad": noise(size)}, zipfile.ZIP_STORED))
    data[200 + size // 2] ^= 1
    with pytest.raises(ValueError, match="set.zip: bad: damaged"):
        s3.unzip(put_archive(client, bytes(data)), "s3://bkt/out")
    assert "out/bad" not in contents(client) and not unfinished(client)


# --- errors ----------------------------------------------------------------------------------------------------------


def one_line(capfd, *arguments, status: int = 1) -> str:
    """What the command says on stderr, a single line, and it ends within seconds."""
    begun = time.monotonic()
    assert main(["s3", *map(str, arguments)]) == status
    (line,) = capfd.readouterr().err.splitlines()
    assert time.monotonic() - begun < 25
    return line.removeprefix("unet-lung s3: ")


def test_no_credentials(proxy, monkeypatch, folder, capfd):
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps those of other tests
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert re.match(
        "s3://bkt/x: no credentials: set AWS_ACCESS_KEY_ID", one_line(capfd, "upload", folder, "s3://bkt/x")
    )


def test_no_such_bucket(proxy, folder, tmp_path, capfd):
    assert one_line(capfd, "upload", folder, "s3://nowhere/x") == "s3://nowhere/x: no such bucket"
    assert one_line(capfd, "download", "s3://nowhere/x", tmp_path / "back") == "s3://nowhere/x: no such bucket"


def test_no_such_object(proxy, tmp_path, capfd):
    assert (
        one_line(capfd, "download", "s3://bkt/x", tmp_path / "back") == "s3://bkt/x: no such object, and none below it"
    )
    assert one_line(capfd, "unzip", "s3://bkt/x.zip", "s3://bkt/y") == "s3://bkt/x.zip: no such object"


@pytest.mark.parametrize(
    "status, code, said",
    [
        (403, "AccessDenied", "permission denied"),
        (403, "InvalidAccessKeyId", "credentials were refused"),
        (400, "ExpiredToken", "credentials were refused"),
        (403, "RequestTimeTooSkewed", "set this machine's clock"),
    ],
)
def test_refusals_of_the_server(status, code, said, proxy, folder, capfd):
    proxy.faults.append(Fault("status", path="/bkt", status=status, code=code, times=100))
    assert said in one_line(capfd, "upload", folder, "s3://bkt/x")


def test_permission_to_write_denied(proxy, folder, capfd, client):
    proxy.faults.append(Fault("status", "PUT|POST", status=403, code="AccessDenied", times=100))
    assert "s3://bkt/x: permission denied, these credentials may not call " in one_line(
        capfd, "upload", folder, "s3://bkt/x"
    )


def test_who_may_not_list_uploads_may_upload(proxy, folder):
    proxy.faults.append(Fault("status", "GET", r"\?uploads", status=403, code="AccessDenied", times=100))
    assert s3.upload(folder, "s3://bkt/x").files == 5


def test_nobody_answers(proxy, monkeypatch, folder, tmp_path, capfd):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert "s3://bkt/x: the network is broken" in one_line(capfd, "download", "s3://bkt/x", tmp_path / "back")


def test_the_network_breaks_in_the_middle_and_the_archive_is_not_called_damaged(proxy, client, capfd, impatient):
    archive = put_archive(client, packed({"a": noise(18 * MB)}, zipfile.ZIP_STORED))
    for whole in (0, 2):  # from the first read, and from the third
        proxy.faults[:] = [Fault("none", "GET", "set.zip", times=whole), Fault("truncate", "GET", "set.zip", times=100)]
        assert f"{archive}: the network is broken" in one_line(capfd, "unzip", archive, "s3://bkt/out")
        assert not contents(client, "out/") and not unfinished(client)


def test_only_what_a_kill_left_is_left_out_of_an_upload_and_that_is_said(client, tmp_path, caplog):
    (tmp_path / "films").mkdir()
    for name in ("film.part", ".film.part", ".film.png.0af3.part", ".part", "film.png"):
        (tmp_path / "films" / name).write_bytes(name.encode())
    s3.upload(tmp_path / "films", "s3://bkt/x")
    assert set(contents(client)) == {"x/film.part", "x/.part", "x/film.png"}
    assert "2 left out, as a command that was killed left them" in caplog.text
    s3.upload(tmp_path / "films" / ".film.part", "s3://bkt/y")
    assert set(contents(client, "y/")) == {"y/.film.part"}


def test_a_link_that_lies_where_a_file_is_fetched_to_is_not_followed(client, tmp_path):
    """Whoever may write to a folder for all could else have another person's file replaced."""
    client.put_object(Bucket="bkt", Key="set/a.png", Body=b"film")
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "back").mkdir()
    for name in (".a.png.part", "a.png"):
        (tmp_path / "back" / name).symlink_to(tmp_path / "mine")
    s3.download("s3://bkt/set", tmp_path / "back")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert files_below(tmp_path / "back") == {"a.png": b"film"} and not (tmp_path / "back" / "a.png").is_symlink()


@pytest.mark.slow
def test_disk_full_is_one_line_and_leaves_no_part(folder, proxy, tmp_path):
    s3.upload(folder, "s3://bkt/set")
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({4 * MB}, {4 * MB})); from kaggle_utils.cli import main; "
        f"sys.exit(main(['s3', 'download', 's3://bkt/set', {str(tmp_path / 'back')!r}]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(kaggle_utils.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", limited], env=environment, capture_output=True, text=True, timeout=600)
    assert (
        done.returncode == 1
        and "File too large" in done.stderr
        and "large.bin" in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert not [name for name in files_below(tmp_path / "back") if "large" in name]


def test_no_space_is_said_with_the_file(proxy, folder, tmp_path, monkeypatch, capfd):
    s3.upload(folder / "a.png", "s3://bkt/set")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(ENOSPC, "No space left on device")))
    assert (
        one_line(capfd, "download", "s3://bkt/set", tmp_path / "back")
        == f"{tmp_path / 'back' / 'a.png'}: No space left on device: make room there; the same command resumes it"
    )
    assert not files_below(tmp_path / "back")


def test_a_disk_too_small_is_said_before_anything_is_fetched(proxy, folder, tmp_path, monkeypatch, capfd):
    s3.upload(folder, "s3://bkt/set")
    proxy.log.clear()
    monkeypatch.setattr(s3.shutil, "disk_usage", lambda _: type("Usage", (), {"free": MB}))
    assert "0.0 GB to fetch, 0.0 GB free" in one_line(capfd, "download", "s3://bkt/set", tmp_path / "back")
    assert not proxy.asked("GET", "/bkt/set/")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["upload", "nowhere", "s3://bkt/x"], "nowhere: no such folder"),
        (["download", "b/x", "y"], "b/x: not an address in S3"),
        (["unzip", "s3:///x.zip", "s3://bkt"], "s3:///x.zip: not an address"),
    ],
)
def test_wrong_paths(arguments, said, proxy, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert one_line(capfd, *arguments).startswith(said)


def test_without_boto3_the_line_says_what_to_install(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "boto3", None)
    (tmp_path / "a").write_text("")
    assert one_line(capfd, "upload", tmp_path, "s3://bkt/x").endswith("pip install boto3")


def test_boto3_is_not_imported_without_an_address():
    code = (
        "import sys; from kaggle_utils.scale import s3; s3.fetch('films'); "
        "sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(kaggle_utils.__file__).parents[1]).returncode == 0


# --- prep and predict ------------------------------------------------------------------------------------------------


def test_what_is_fetched_mirrors_the_prefix_and_is_not_fetched_twice(client, proxy, tmp_path):
    for key in ("set/a", "set/sub/b", "other"):
        client.put_object(Bucket="bkt", Key=key, Body=key.encode())
    home = s3.fetch("s3://bkt/set")
    assert files_below(home) == {"a": b"set/a", "sub/b": b"set/sub/b"}
    client.delete_object(Bucket="bkt", Key="set/sub/b")
    proxy.log.clear()
    assert files_below(s3.fetch("s3://bkt/set/")) == {"a": b"set/a"} and not proxy.asked("GET", "/bkt/set/")
    assert s3.fetch("s3://bkt/other").read_bytes() == b"other" and s3.fetch("films") == "films"


def test_prep_and_predict_take_addresses(client, tmp_path, monkeypatch, capsys):
    import pandas as pd
    import torch

    from kaggle_utils.model import UNet, save_weights

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(19)  # by chance a network that finds lungs
    save_weights(tmp_path / "w.safetensors", UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    write_raw(tmp_path / "raw" / "CXR_png" / "MCUCXR_0001_0.png", phantom().image)
    for source, address in (("raw", "s3://bkt/raw"), ("w.safetensors", "s3://bkt/models")):
        assert main(["s3", "upload", source, address]) == 0
    assert main(["prep", "--input", "s3://bkt/raw", "--size", "32", "--out", "prepared"]) == 0
    assert (tmp_path / "prepared" / "manifest.csv").exists()
    assert (
        main(
            [
                "predict",
                "s3://bkt/raw",
                "--force",
                "--weights",
                "s3://bkt/models/w.safetensors",
                "--out",
                "s3://bkt/lungs",
                "--device",
                "cpu",
                "--format",
                "png",
                "coco",
            ]
        )
        == 0
    )
    assert "1 mask in s3://bkt/lungs" in capsys.readouterr().out
    written = contents(client, "lungs/")
    assert {"lungs/masks/MCUCXR_0001_0.png", "lungs/overlays/MCUCXR_0001_0.png", "lungs/measurements.csv"} < set(
        written
    )
    row = pd.read_csv(io.BytesIO(written["lungs/predictions.csv"])).iloc[0]
    assert (
        row["path"] == "s3://bkt/raw/CXR_png/MCUCXR_0001_0.png"
        and row["mask"] == "s3://bkt/lungs/masks/MCUCXR_0001_0.png"
    )
    lungs = pd.read_parquet(io.BytesIO(written["lungs/coco.parquet"]))
    assert set(lungs["path"]) == {row["path"]} and list(lungs["id"]) == list(range(1, len(lungs) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("out", ["s3://bkt/raw/out", "s3://bkt/raw"])
def test_results_below_the_films_in_s3_are_no_films(client, tmp_path, out):
    import pandas as pd
    import torch

    from kaggle_utils.model import UNet, save_weights

    torch.manual_seed(19)  # by chance a network that finds lungs
    save_weights(tmp_path / "w.safetensors", UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    film = write_raw(tmp_path / "film.png", phantom().image).read_bytes()
    prefix = out.removeprefix("s3://bkt/")
    for key in ("raw/film.png", f"{prefix}/masks/of_an_upload_that_was_stopped.png", "raw/other run/overlays/film.png"):
        client.put_object(Bucket="bkt", Key=key, Body=film)
    client.put_object(Bucket="bkt", Key="raw/other run/predictions.csv", Body=b"name\n")
    for _ in range(2):
        assert (
            main(
                [
                    "predict",
                    "s3://bkt/raw",
                    "--force",
                    "--weights",
                    str(tmp_path / "w.safetensors"),
                    "--out",
                    out,
                    "--device",
                    "cpu",
                ]
            )
            == 0
        )
        written = client.get_object(Bucket="bkt", Key=f"{prefix}/predictions.csv")["Body"]
        assert pd.read_csv(written)["path"].tolist() == ["s3://bkt/raw/film.png"]
    with pytest.raises(FileNotFoundError, match="nothing there but what this package wrote"):
        s3.fetch(f"{out}/masks", out)


def test_screen_takes_addresses(client, tmp_path, monkeypatch, capsys):
    import pandas as pd

    from kaggle_utils.infer import DEFAULT_WEIGHTS
    from kaggle_utils.synthetic.model import AppearanceModel
    from kaggle_utils.tb.screening import TB_WEIGHTS

    monkeypatch.chdir(tmp_path)
    write_raw(tmp_path / "raw" / "film.png", AppearanceModel.load().sample(1, 0, size=256, acquire=False)[0].image)
    for source, address in (
        ("raw", "s3://bkt/raw"),
        (TB_WEIGHTS, "s3://bkt/models"),
        (DEFAULT_WEIGHTS, "s3://bkt/models"),
    ):
        assert main(["s3", "upload", str(source), address]) == 0
    assert (
        main(
            [
                "screen",
                "s3://bkt/raw",
                "--out",
                "s3://bkt/tb",
                "--device",
                "cpu",
                "--weights",
                f"s3://bkt/models/{TB_WEIGHTS.name}",
                "--segmenter",
                f"s3://bkt/models/{DEFAULT_WEIGHTS.name}",
            ]
        )
        == 0
    )
    assert "s3://bkt/tb/screening.csv" in capsys.readouterr().out
    written = contents(client, "tb/")
    row = pd.read_csv(io.BytesIO(written["tb/screening.csv"])).iloc[0]
    assert (row["path"], row["overlay"]) == ("s3://bkt/raw/film.png", "s3://bkt/tb/overlays/film.png") and row[
        "overlay"
    ].removeprefix("s3://bkt/") in written


def test_films_keep_their_addresses_in_tables_and_messages_of_a_folder(client, tmp_path, capsys):
    import pandas as pd

    from kaggle_utils.image import encode_image
    from kaggle_utils.synthetic.model import AppearanceModel

    client.put_object(
        Bucket="bkt",
        Key="raw/film.png",
        Body=encode_image(AppearanceModel.load().sample(1, 0, size=256, acquire=False)[0].image, ".png"),
    )
    client.put_object(Bucket="bkt", Key="raw/bad.png", Body=b"no film")
    assert (
        main(["predict", "s3://bkt/raw", "--out", str(tmp_path / "out"), "--device", "cpu", "--format", "png", "coco"])
        == 3
    )
    table = pd.read_csv(tmp_path / "out/predictions.csv", keep_default_na=False)
    assert list(table["path"]) == ["s3://bkt/raw/bad.png", "s3://bkt/raw/film.png"] and table["mask"][1] == str(
        tmp_path / "out/masks/film.png"
    )
    assert set(pd.read_parquet(tmp_path / "out/coco.parquet")["path"]) == {"s3://bkt/raw/film.png"}
    assert table["error"][0].startswith("s3://bkt/raw/bad.png: ") and table["error"][0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "prep --input raw --out s3://bkt/set",
        "train --data set --out s3://bkt/run",
        "shards --data s3://bkt/set --out shards",
        "evaluate --data s3://bkt/set",
        "synth --out s3://bkt/raw",
        "screen films --out out --device s3://x",
    ],
)
def test_an_address_where_a_folder_is_needed_is_refused_before_a_folder_of_that_name_is_made(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 1
    assert re.search(
        "(out|data|device) is a folder or a file of this machine, not s3://", capsys.readouterr().err
    ) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "address, key",
    [
        ("s3://bkt/a/set.zip", "a/set.zip"),
        ("s3://bkt/a", "a/set.zip"),
        ("s3://bkt/a/", "a/set.zip"),
        ("s3://bkt", "set.zip"),
    ],
)
def test_a_file_has_the_key_that_its_address_ends_in_or_its_own_name_below(address, key, client, tmp_path):
    (tmp_path / "set.zip").write_bytes(b"zip")
    s3.upload(tmp_path / "set.zip", address)
    assert contents(client) == {key: b"zip"}


def test_a_glob_in_s3_is_told_to_be_none(client):
    with pytest.raises(FileNotFoundError, match="there are no globs in S3"):
        s3.fetch("s3://bkt/films/*.png")


# --- keys and names that no file can have, results that can't be sent ------------------------------------------------


def test_objects_that_can_be_no_files_are_named_and_the_others_are_fetched(client, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    long = "film" * 76
    for key in ("both/x", "both/x/1.png", f"both/{long}", f"both/{'a' * 249}", "both/good.png", "only/" + long):
        client.put_object(Bucket="bkt", Key=key, Body=key.encode())
    home = s3.fetch("s3://bkt/both")
    assert sorted(files_below(home)) == ["a" * 249, "good.png", "x/1.png"]
    assert "2 of 5 objects can't be files" in caplog.text and "both/x" in caplog.text and "filmfilm" in caplog.text
    assert s3.fetch("s3://bkt/both/x").read_bytes() == b"both/x"  # by itself it can be one
    assert sorted(files_below(s3.fetch("s3://bkt/both"))) == ["a" * 249, "good.png", "x/1.png"]
    with pytest.raises(ValueError, match="1 of 1 objects can't be files"):
        s3.fetch("s3://bkt/only")


def test_an_archive_with_backslashes_is_unpacked_as_unzip_does(client):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in ("CXR_png\\", "CXR_png\\a.png", "masks\\deep\\a_mask.png"):
            info = zipfile.ZipInfo(name)
            info.create_system = 0
            archive.writestr(info, name)
        info = zipfile.ZipInfo("unix\\name")
        info.create_system = 3
        archive.writestr(info, "x")
    client.put_object(Bucket="bkt", Key="set.zip", Body=data.getvalue())
    s3.unzip("s3://bkt/set.zip", "s3://bkt/set")
    assert set(contents(client, "set/")) == {"set/CXR_png/a.png", "set/masks/deep/a_mask.png", "set/unix\\name"}


def test_an_archive_with_backslashes_that_leads_out_is_refused(client):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        info = zipfile.ZipInfo("..\\out.png")
        info.create_system = 0
        archive.writestr(info, "x")
    client.put_object(Bucket="bkt", Key="set.zip", Body=data.getvalue())
    with pytest.raises(ValueError, match="leads out of the target"):
        s3.unzip("s3://bkt/set.zip", "s3://bkt/set")


def test_who_may_not_write_results_is_told_before_the_work(proxy, tmp_path, monkeypatch, impatient):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    proxy.faults.append(Fault("status", "PUT", "", times=100, status=403, code="AccessDenied"))
    with (
        pytest.raises(PermissionError, match="s3://bkt/lungs: permission denied.*PutObject"),
        s3.results("s3://bkt/lungs"),
    ):
        pytest.fail("the work began")


def test_results_that_could_not_be_sent_are_kept_and_named_and_the_same_command_resumes(
    client, proxy, tmp_path, monkeypatch, impatient, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OSError), s3.results("s3://bkt/lungs") as out:
        assert not contents(client)  # the trial's object is gone
        (out / "masks").mkdir()
        (out / "masks" / "a.png").write_bytes(b"mask")
        proxy.faults.append(Fault("status", "PUT", "", times=100))
    assert f"kept in {out}" in caplog.text and f"s3 upload {out} s3://bkt/lungs" in caplog.text
    assert files_below(out) == {"masks/a.png": b"mask"}
    proxy.faults.clear()
    with pytest.raises(KeyboardInterrupt), s3.results("s3://bkt/lungs/") as again:
        raise KeyboardInterrupt
    with s3.results("s3://bkt/lungs") as again:
        assert again == out and files_below(again) == {"masks/a.png": b"mask"}
    assert contents(client) == {"lungs/masks/a.png": b"mask"} and not out.exists()


# --- several runs at once --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_downloads_at_once_into_one_folder_end_with_whole_files(folder, proxy, tmp_path):
    s3.upload(folder, "s3://bkt/set")
    (ends,) = at_once(tmp_path, [["s3", "download", "s3://bkt/set", "back"]], ["kaggle_utils.scale.s3"])
    assert files_below(tmp_path / "back") == files_below(folder)
    assert 0 in [status for status, _ in ends]
    assert all(
        re.fullmatch("unet-lung s3: back is being written by another run( \\(process .*\\))?; .*\n", said)
        for status, said in ends
        if status
    ), ends


@pytest.mark.slow
def test_runs_that_need_the_same_copies_wait_for_each_other(folder, proxy, tmp_path):
    s3.upload(folder, "s3://bkt/set")
    fetched = []
    threads = [threading.Thread(target=lambda: fetched.append(files_below(s3.fetch("s3://bkt/set")))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [files_below(folder)] * 3
    assert len(proxy.asked("GET", "/bkt/set/large.bin")) <= 3  # its parts, once


def test_results_in_one_place_of_s3_have_one_writer(proxy):
    with (
        s3.results("s3://bkt/out") as out,
        pytest.raises(BlockingIOError, match="^s3://bkt/out is being written by another run"),
    ):
        (out / "predictions.csv").write_text("name\n")
        with s3.results("s3://bkt/out"):
            pass


def test_locks_are_not_uploaded(client, tmp_path):
    with locked(tmp_path / "out" / LOCK, "out"):
        (tmp_path / "out" / "a.csv").write_text("name\n")
        s3.upload(tmp_path / "out", "s3://bkt/x")
    assert set(contents(client)) == {"x/a.csv"}
