"""pictures.find: which files are films, through links and by their content, and what their results are called."""

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from errno import ENOLCK
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import pytest
from dicoms import dicom
from phantoms import phantom, write_raw

import kaggle_utils
from kaggle_utils.files import LOCK, check_ours, locked, printable, start_results, write_bytes
from kaggle_utils.pictures.find import (
    NAME_BYTES,
    check_patterns,
    claims_film,
    find_files,
    is_film,
    unique_names,
    walk,
    without_outputs,
    without_suffix,
)

UID = "1.2.276.0.7230010.3.1.4.1704223.693.1533189483.2"
FILM = phantom(40, 32).image


def names(paths):
    return [p.name for p in paths]


def encoded(suffix):
    return cv2.imencode(suffix, FILM)[1].tobytes()


# --- patterns --------------------------------------------------------------------------------------------------------


def test_folder_is_searched_below_for_images(folder):
    assert names(find_files([folder])) == ["a.jpg", "b.png", "c.PNG", "d.tif"]


def test_glob_and_file_are_found_once_each(folder):
    assert names(find_files([folder / "b.png", str(folder / "*.png"), folder])) == ["b.png", "a.jpg", "c.PNG", "d.tif"]


def test_recursive_glob(folder):
    assert names(find_files([str(folder / "**" / "*.tif")])) == ["d.tif"]


def test_glob_that_matches_a_folder_searches_it(folder):
    assert names(find_files([str(folder / "s*")])) == ["c.PNG", "d.tif"]


def test_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    write_raw(tmp_path / "film[1].png", FILM)
    assert names(find_files([tmp_path / "film[1].png"])) == ["film[1].png"]


@pytest.mark.parametrize("search", [find_files, check_patterns])
@pytest.mark.parametrize(
    "pattern, reason",
    [
        ("nothing.png", "no such file"),
        ("*.dcm", "no such file"),
        ("empty", "no film in it"),
        ("texts", "no film in it"),
        ("[et]*", "no film among what it names"),
    ],
)
def test_pattern_that_names_nothing_is_an_error(tmp_path, search, pattern, reason):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("not a film")
    with pytest.raises(FileNotFoundError) as error:
        search([tmp_path / pattern])
    assert str(error.value).startswith(f"{tmp_path / pattern}: {reason}")


def test_patterns_that_name_films_are_no_error(folder):
    check_patterns([folder, folder / "b.png", str(folder / "*.jpg")])


def test_check_stops_at_the_first_film_of_a_folder(folder, monkeypatch):
    looked = []
    monkeypatch.setattr("kaggle_utils.pictures.find.is_film", lambda path: looked.append(path) or True)
    check_patterns([folder])
    assert len(looked) == 1


# --- content ---------------------------------------------------------------------------------------------------------


def test_dicom_files_are_found_by_their_content(study):
    write_raw(study / "film.png", FILM)
    assert [str(path.relative_to(study)) for path in find_files([study])] == [
        "ST1/1.2.840.1",
        "ST1/IM2",
        "ST1/SR1",
        "ST2/IM3",
        "ST2/cut.dcm",
        "film.png",
    ]


FILMS = {
    "scan.jfif": encoded(".jpg"),
    "png_without_suffix": encoded(".png"),
    "film.webp": encoded(".webp"),
    "film.jp2": encoded(".jp2"),
    "film.dcm.gz": gzip.compress(dicom(FILM)),
    "packed": gzip.compress(encoded(".png")),
    UID: dicom(FILM),
    "scan.dat": encoded(".tif"),
    "old.bmp.bak": encoded(".bmp"),
    "drawing": encoded(".pgm"),
    "phone.heic": b"",
    "volume.nii.gz": b"",
    "JPCLN001.IMG": bytes(64),
    "volume": (348).to_bytes(4, "little") + bytes(340) + b"n+1\0",
}
NONE = {
    "notes.txt": b"PNG",
    "table.csv": b"a,b\n",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    ".hidden.png": encoded(".png"),
    "._film.png": b"\0\5\x16\7",
    ".DS_Store": b"\0\0\0\1Bud1",
    "DICOMDIR": dicom(FILM, PixelData=None),
    "BMI of patients": b"BMI  age\n22.1 50\n",
    "films.zip": b"PK\3\4",
    "set.tar.gz": gzip.compress(b"film" * 200),
    "cut": b"\x1f\x8b",
    "nothing": b"",
}


@pytest.mark.parametrize("name", FILMS)
def test_film_is_found_whatever_its_name_and_kind(tmp_path, name):
    (tmp_path / name).write_bytes(FILMS[name])
    assert is_film(tmp_path / name) and names(find_files([tmp_path])) == [name]


@pytest.mark.parametrize("name", NONE)
def test_what_nobody_takes_for_a_film_is_not_found(tmp_path, name):
    (tmp_path / name).write_bytes(NONE[name])
    with pytest.raises(FileNotFoundError):
        find_files([tmp_path])


def test_files_that_are_left_out_are_named_but_for_texts_tables_and_hidden_ones(tmp_path, caplog):
    for name in ["film.png", *NONE]:
        (tmp_path / name).write_bytes(NONE.get(name, FILMS["png_without_suffix"]))
    assert names(find_files([tmp_path])) == ["film.png"]
    (message,) = caplog.messages
    assert message == f"{tmp_path}: 5 files left out, as no film: BMI of patients, cut, films.zip, …"


@pytest.mark.parametrize(
    "name, claim",
    [
        ("film.PNG", True),
        ("film.dcm.gz", True),
        ("film.IMG", True),
        ("notes.txt", False),
        ("DICOMDIR", False),
        (".film.png", True),
        (".DS_Store", False),
        (UID, None),
        ("IM1", None),
    ],
)
def test_what_a_name_says_of_its_file(name, claim):
    assert claims_film(name) is claim


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipe_in_a_folder_is_not_waited_for(study):
    os.mkfifo(study / "pipe")
    assert "pipe" not in names(find_files([study]))


def test_hidden_folders_are_not_searched(folder):
    write_raw(folder / ".ipynb_checkpoints" / "b-checkpoint.png", FILM)
    assert "b-checkpoint.png" not in names(find_files([folder]))


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path):
    """Films in a store elsewhere, and a folder with a film, a link to the store, and a link to itself."""
    write_raw(tmp_path / "store" / "study" / "film.png", FILM)
    write_raw(tmp_path / "films" / "here.png", FILM)
    (tmp_path / "films" / "study").symlink_to("../store/study")
    (tmp_path / "store" / "study" / "round").symlink_to("../../films")
    return tmp_path / "films"


def test_linked_folder_is_searched_and_a_loop_of_links_ends(linked):
    assert [str(path.relative_to(linked)) for path in find_files([linked])] == ["here.png", "study/film.png"]


def test_link_to_a_folder_can_be_named(linked):
    assert names(find_files([linked / "study"])) == ["film.png", "here.png"]


def test_folder_reached_in_two_ways_is_searched_once_by_its_own_name(linked):
    write_raw(linked / "z" / "deep" / "deep.png", FILM)
    (linked / "a").symlink_to("z/deep")
    assert [str(path.relative_to(linked)) for path in find_files([linked, linked / "a"])] == [
        "here.png",
        "study/film.png",
        "z/deep/deep.png",
    ]
    assert names(find_files([str(linked / "**" / "*.png")])) == ["here.png", "film.png", "deep.png"]


@pytest.mark.parametrize(
    "pattern, found",
    [
        ("", ["film.png", "here.png", "sub/film.png"]),
        ("**", ["film.png", "here.png", "sub/film.png"]),
        ("**/*.png", ["film.png", "here.png", "sub/film.png"]),
        ("*/**/here.png", ["a/here.png"]),
        ("**/sub", ["sub/c/film.png", "sub/c/here.png", "sub/film.png"]),
        ("s*/**/**/f*.png", ["sub/c/film.png", "sub/film.png"]),
        ("**/none", None),
        ("none/**", None),
    ],
)
def test_two_links_of_a_folder_to_itself_end(tmp_path, pattern, found):
    for name in ("films/here.png", "films/film.png", "films/sub/film.png"):
        write_raw(tmp_path / name, FILM)
    for name in ("a", "b", "sub/c", "sub/d"):  # a glob would go down 40 of them, in 2**40 ways
        (tmp_path / "films" / name).symlink_to(tmp_path / "films", target_is_directory=True)
    folder = tmp_path / "films"
    if found is None:
        with pytest.raises(FileNotFoundError):
            find_files([folder / pattern])
    else:
        assert [path.relative_to(folder).as_posix() for path in find_files([folder / pattern])] == found


def test_two_links_to_one_file_are_two_films(linked):
    for name in ("one.png", "two.png"):
        (linked / name).symlink_to("here.png")
    assert names(find_files([linked])) == ["here.png", "one.png", "film.png", "two.png"]


def test_dangling_link_is_a_film_that_will_have_a_reason(linked):
    (linked / "gone.png").symlink_to("nowhere.png")
    assert "gone.png" in names(find_files([linked])) and names(find_files([linked / "gone.png"])) == ["gone.png"]


def test_folder_that_can_not_be_searched_is_found_like_a_film_that_can_not_be_read(linked, monkeypatch):
    (linked / "locked").mkdir()
    (linked / "study2").symlink_to("gone")
    (linked / "notes.txt").symlink_to("gone")
    listdir = os.listdir

    def some(path):
        if Path(path).name == "locked":
            raise PermissionError("no")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", some)
    assert names(find_files([linked])) == ["here.png", "locked", "film.png", "study2"]
    check_patterns([linked / "locked"])
    assert names(find_files([linked / "locked"])) == ["locked"]


@pytest.mark.skipif(not hasattr(os, "fork") or os.geteuid() != 0, reason="only root can give up its rights")
@pytest.mark.parametrize("mode", [0o000, 0o644], ids=oct)
def test_folder_without_rights_is_found_too(mode):
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        write_raw(Path(folder, "films", "locked", "film.png"), FILM)
        write_raw(Path(folder, "films", "open.png"), FILM)
        os.chmod(Path(folder, "films", "locked"), mode)
        reading, writing = os.pipe()
        if os.fork() == 0:
            try:
                os.setuid(65534)
                os.write(writing, " ".join(names(find_files([Path(folder, "films")]))).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            assert pipe.read() == ("locked open.png" if mode == 0 else "film.png open.png")
        os.wait()


# --- our own outputs -------------------------------------------------------------------------------------------------


def test_pictures_of_earlier_runs_are_no_films(folder):
    for run in (folder, folder / "first run"):
        for below in ("masks", "overlays"):
            write_raw(run / below / "b.png", FILM)
        write_raw(run / "contact.png", FILM)
        (run / "predictions.csv").write_text("name\n")
    write_raw(folder / "sub" / "masks" / "own.png", FILM)  # no table says that these are ours
    assert names(find_files([folder])) == ["a.jpg", "b.png", "c.PNG", "d.tif", "own.png"]
    assert "b.png" in names(find_files([folder / "first run" / "overlays"]))
    with pytest.raises(FileNotFoundError, match="no film in it but an earlier run's own results"):
        find_files([folder / "first run"])


def test_masks_of_a_prepared_folder_are_no_films(prepared):
    (prepared / "prep.json").write_text("{}")
    assert len(find_files([prepared])) == 16


@pytest.mark.parametrize("patterns", [["."], ["*.png", "*/*.*", "*.jpg"], ["**/*.*g", "sub"]], ids=str)
def test_output_may_be_the_inputs_own_folder(folder, monkeypatch, patterns):
    monkeypatch.chdir(folder)
    write_raw(folder / "masks" / "b.png", FILM)
    (folder / "predictions.csv").write_text("name\n")  # as every run has before it has a mask
    assert sorted(names(find_files(patterns, out=folder))) == ["a.jpg", "b.png", "c.PNG", "d.tif"]


def test_film_that_the_results_would_replace_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    write_raw(folder / "masks" / "b.png", FILM)
    write_raw(folder / "contact.png", FILM)
    with pytest.raises(ValueError, match="^contact.png: results would be written where it lies"):
        find_files(["contact.png"], out=".")
    (folder / "contact.png").unlink()
    for pattern in ("masks/b.png", "masks", "masks/*.png", "."):
        with pytest.raises(
            ValueError, match="^masks/b.png: results would be written where it lies: choose another folder"
        ):
            find_files([pattern], out=".")
    assert names(find_files(["masks/b.png"], out="elsewhere")) == ["b.png"]


@pytest.mark.parametrize(
    "pattern, found",
    [
        ("films/*/*", ["c.PNG", "d.tif"]),
        ("films/**", ["a.jpg", "b.png", "c.PNG", "d.tif"]),
        ("films/**/*.png", ["b.png"]),
        ("films/r*", None),
        ("films/*/*/*", None),
        ("films/run/*.csv", None),
    ],
)
def test_globs_find_nothing_that_this_package_wrote(folder, monkeypatch, pattern, found):
    monkeypatch.chdir(folder.parent)
    for below in ("masks", "overlays"):
        write_raw(folder / "run" / below / "b.png", FILM)
    write_raw(folder / "run" / "contact.png", FILM)
    (folder / "run" / "predictions.csv").write_text("name\n")
    if found:
        assert names(find_files([pattern])) == found
    else:
        with pytest.raises(FileNotFoundError):
            find_files([pattern])


def test_pictures_that_this_package_wrote_are_known_by_their_paths_alone():
    paths = [
        "b/p/film.png",
        "b/p/masks/theirs.png",
        "b/p/run/predictions.csv",
        "b/p/run/masks/film.png",
        "b/p/run/overlays/film.png",
        "b/p/run/contact.png",
        "b/p/run/more/film.png",
        "b/p/set/prep.json",
        "b/p/set/train/mask/film.png",
        "b/p/set/train/image/film.png",
        "b/p//odd/screening.csv",
        "b/p//odd/overlays/x/film.png",
    ]
    films = ["b/p/film.png", "b/p/masks/theirs.png", "b/p/run/more/film.png", "b/p/set/train/image/film.png"]
    assert [path for path in without_outputs(paths) if claims_film(path)] == films
    assert [path for path in without_outputs(paths, "b/p/") if claims_film(path)] == [films[0], *films[2:]]


@pytest.mark.parametrize("out", ["link/out", "films/nothing/../out", "films/./out"])
def test_results_below_the_films_are_no_films_whatever_path_leads_there(folder, monkeypatch, out):
    monkeypatch.chdir(folder.parent)
    Path("link").symlink_to("films")
    (folder / "nothing").mkdir()
    write_raw(folder / "out" / "masks" / "b.png", FILM)
    (folder / "out" / "predictions.csv").write_text("name\n")
    for pattern in ("films", "link", "films/**/*.png"):
        assert "masks" not in [path.parent.name for path in find_files([pattern], out=out)]


COLUMNS = ("name", "path", "error")


def start(out):
    start_results(out, "predictions.csv", COLUMNS, ["masks", "overlays"], others=["contact.png"])


def test_results_go_to_a_folder_of_their_own_or_of_an_earlier_run(tmp_path):
    for _ in range(2):
        start(tmp_path / "new" / "out")
        assert (tmp_path / "new" / "out" / "predictions.csv").read_text() == "name,path,error\n"
        write_raw(tmp_path / "new" / "out" / "masks" / "film.png", FILM)  # as of a run that was killed
    (tmp_path / "new" / "out" / "predictions.csv").write_text(
        "name,path,a column of another version\nfilm,film.png,1\n"
    )
    start(tmp_path / "new" / "out")
    assert "film.png,1" in (tmp_path / "new" / "out" / "predictions.csv").read_text()


@pytest.mark.parametrize("first, second", [("predictions.csv", "screening.csv"), ("screening.csv", "predictions.csv")])
def test_screening_and_predictions_do_not_share_a_folder(tmp_path, first, second):
    start_results(tmp_path, first, COLUMNS, ["overlays"])
    write_raw(tmp_path / "overlays" / "film.png", FILM)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'overlays'}: not of an earlier run"):
        start_results(tmp_path, second, COLUMNS, ["overlays"])


@pytest.mark.parametrize("theirs", ["masks/film.png", "overlays/notes", "predictions.csv", "contact.png"])
def test_results_replace_nothing_of_somebody_elses(tmp_path, theirs):
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text("patient,truth\n")
    with pytest.raises(ValueError, match=f"^{tmp_path / theirs.split('/')[0]}: .* choose another folder"):
        start(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [tmp_path / theirs]
    assert (tmp_path / theirs).read_text() == "patient,truth\n"


def test_what_a_kill_left_is_removed_by_the_next_run_and_nothing_of_others(tmp_path, monkeypatch):
    def write(name, age=3600):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)

    dead = [".a.csv.0123abcd.part", "masks/.a.png.0123abcd.part", "train/image/.a.png.99999999.part"]
    others = [
        "film.part",
        ".film.part",
        "a.0123abcd.part",
        ".a.png.0123ABCD.part",
        "masks/.a.0123abcde.part",
        "a/b/c/.a.0123abcd.part",
    ]
    with (
        monkeypatch.context() as patched,
        pytest.raises(KeyboardInterrupt),
    ):  # its name is that of what write_bytes leaves
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        write_bytes(tmp_path / "b.png", b"half")
    (killed,) = (path.name for path in tmp_path.iterdir())
    for name in (*dead, *others, killed):
        write(name)
    write(".fresh.csv.0123abcd.part", age=5)
    with locked(tmp_path / LOCK, tmp_path):
        left = {
            path.relative_to(tmp_path).as_posix()
            for path in tmp_path.rglob("*")
            if path.is_file() and path.name != LOCK
        }
    assert left == {*others, ".fresh.csv.0123abcd.part"}


def test_empty_folders_are_nobodys(tmp_path):
    (tmp_path / "masks").mkdir()
    start(tmp_path)
    assert (tmp_path / "overlays").is_dir()


def test_walk_leaves_out_a_marked_folder_with_all_below(folder):
    (folder / "sub" / "drawn").touch()
    write_raw(folder / "sub" / "deeper" / "e.png", FILM)
    assert {path.name for path in walk(folder, unless=("drawn",))} == {"a.jpg", "b.png", "notes.txt"}


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, stem",
    [
        ("film.png", "film"),
        ("film.dcm.gz", "film"),
        ("v1.2.PNG", "v1.2"),
        (UID, UID),
        ("film", "film"),
        (".png", ".png"),
        ("scan.2020", "scan.2020"),
        ("brain.nii.gz", "brain"),
        ("set.gz", "set.gz"),
    ],
)
def test_only_what_says_that_it_is_a_film_is_taken_off_a_name(name, stem):
    assert without_suffix(name) == stem


def named(*paths):
    return unique_names([Path("/films", path) for path in paths])


def test_films_of_one_name_are_named_by_their_paths():
    assert named("a/film.png", "b/Film.dcm", "c.png") == ["a_film_png", "b_Film_dcm", "c"]
    assert named("a/b.png", "c/b.png", "a_b_png.png") == ["a_b_png", "c_b_png", "a_b_png_2"]
    assert named("A.png", "a.png", "a_png_2.png") == ["A_png", "a_png_2", "a_png_2_2"]


def test_names_that_differ_in_case_or_in_the_form_of_their_accents_are_told_apart():
    found = named("o\u0308.png", "\u00f6.png", "X.png", "x.jpg")
    assert len({name.casefold() for name in found}) == 4 and found[2:] == ["X_png", "x_jpg"]


@pytest.mark.parametrize(
    "file, name",
    [
        ("con.png", "_con"),
        ("LPT1.x.png", "_LPT1.x"),
        ("a\nb.png", "a_nb"),
        ('a:b"c?.png', "a_b_c_"),
        ("...png", "_.."),
        (os.fsdecode(b"r\xf6ntgen.png"), "r_xf6ntgen"),
        ("röntgen.png", "röntgen"),
        ("片.png", "片"),
    ],
)
def test_name_is_one_that_any_system_can_write(file, name):
    assert named(file) == [name]


def test_long_names_are_cut_and_stay_apart():
    long = ["片" * 83 + end + ".png" for end in "ab"] + ["片" * 85, "片" * 73]
    found = named(*long)
    assert all(len(name.encode()) <= NAME_BYTES for name in found) and len(set(found)) == 4
    digest = hashlib.sha256(("片" * 83 + "a").encode()).hexdigest()[:8]
    assert found[0] == "片" * 70 + "_" + digest and found[3] == "片" * 73


@pytest.mark.parametrize(
    "text, line",
    [("a\nb\x85c\u2028", "a\\nb\\x85c\\u2028"), (os.fsdecode(b"r\xf6n"), "r\\xf6n"), ("röntgen 片", "röntgen 片")],
)
def test_printable_text_is_one_line_of_valid_characters(text, line):
    assert printable(text) == line and printable(Path(text)) == line


# --- locks -----------------------------------------------------------------------------------------------------------

HOLDER = """
import os, sys, time
from pathlib import Path
from kaggle_utils.files import LOCK, locked
with locked(Path(sys.argv[1]) / LOCK, "out"):
    if "fork" not in sys.argv or os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts another process that has the folder's lock, and gives it when it has."""
    started = []

    def start(*words):
        environment = {**os.environ, "PYTHONPATH": str(Path(kaggle_utils.__file__).parents[1])}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLDER, str(tmp_path / "out"), *words],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        started[-1].last = int(started[-1].stdout.readline())
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_folder_has_one_writer_and_the_second_is_told_who(tmp_path, holder):
    lock, first = tmp_path / "out" / LOCK, holder()
    for _ in range(2):
        with pytest.raises(BlockingIOError) as error, locked(lock, tmp_path / "out"):
            pass
        assert str(error.value) == (
            f"{tmp_path / 'out'} is being written by another run (process {first.pid}); "
            "wait for it or choose another folder"
        )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_lock_ends_with_a_killed_process_even_where_a_process_of_its_own_lives_on(tmp_path, holder):
    first = holder("fork")
    first.kill()
    first.wait()
    try:
        with locked(tmp_path / "out" / LOCK, "out"):
            os.kill(first.last, 0)  # it is there still
    finally:
        os.kill(first.last, signal.SIGKILL)


def test_lock_leaves_nothing_behind(tmp_path):
    lock = tmp_path / "out" / LOCK
    with locked(lock, "out"):
        check_ours(tmp_path / "out", "prep.json")  # to everybody else the folder is empty
        start(tmp_path / "out")
        assert not list(walk(tmp_path / "out", unless=("predictions.csv",))) and lock.exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["masks", "overlays", "predictions.csv"]
    with locked(tmp_path / "new" / LOCK, "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_lock_of_a_killed_run_is_in_nobodys_way(tmp_path):
    (tmp_path / LOCK).write_text("x" * 500)
    with locked(tmp_path / LOCK, "out"):
        assert (
            f"process {os.getpid()} on " in (tmp_path / LOCK).read_text() and "x" not in (tmp_path / LOCK).read_text()
        )
    assert not (tmp_path / LOCK).exists()


def test_waiting_for_a_lock_ends_with_the_first_run(tmp_path, caplog):
    order, has_it = [], threading.Event()

    def second():
        has_it.wait()
        with locked(tmp_path / LOCK, "out", wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(tmp_path / LOCK, "out"):
        has_it.set()
        while not caplog.messages:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert caplog.messages == [f"out is being written by another run (process {os.getpid()}): waiting for it"]


def test_folder_that_can_not_be_locked_is_written_all_the_same(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    ran = []
    with locked(tmp_path / "file" / LOCK, "out"):  # a folder that can't be made; whoever writes there says why
        ran.append(1)
    assert not caplog.messages
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path / "out" / LOCK, "out"):
        ran.append(2)
    assert ran == [1, 2] and caplog.messages == [
        f"{tmp_path / 'out'}: can't be locked (No locks available): let no other run write there"
    ]


def test_planted_link_in_a_locks_place_is_not_followed(tmp_path):
    (tmp_path / "theirs").write_text("truth")
    (tmp_path / LOCK).symlink_to("theirs")
    with locked(tmp_path / LOCK, "out"):
        pass
    assert (tmp_path / "theirs").read_text() == "truth"
