"""Videos: read frame by frame, predicted, and written with the same size and times."""

import errno
import io
import json
import re
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import dgmn
from dgmn.errors import InputError
from dgmn.video import Video, VideoWriter, frames
from dgmn_cli import run

from videos import cut, video


def facts(path):
    """Size, times and rate of a video, as PyAV alone reads it."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        found = [(frame.width, frame.height, float(frame.time)) for frame in container.decode(stream)]
        return found, stream.average_rate


@pytest.mark.parametrize("size", [(96, 64), (95, 63)])
def test_a_copy_is_as_its_source(size, tmp_path):
    source = video(tmp_path / "a.mkv", size=size, rate=Fraction(30000, 1001))
    with Video(source) as read, VideoWriter(tmp_path / "b.mp4", read) as written:
        for frame in read:
            written.add(frame.image, frame.facts["seconds"])
    (before, rate), (after, rate_after) = facts(source), facts(tmp_path / "b.mp4")
    assert [found[:2] for found in after] == [size] * 12
    assert [found[2] for found in after] == pytest.approx([found[2] - before[0][2] for found in before], abs=0.002)
    assert float(rate_after) == pytest.approx(float(rate), rel=0.01)
    pairs = zip(frames(source), frames(tmp_path / "b.mp4"), strict=True)
    assert all(np.abs(np.asarray(a.image).astype(int) - np.asarray(b.image)).mean() < 6 for a, b in pairs)


def test_a_turned_video_is_upright(tmp_path):
    plain, turned = (list(frames(video(tmp_path / f"{angle}.mp4", turned=angle))) for angle in (0, 90))
    expected = plain[0].image.transpose(Image.Transpose.ROTATE_90)  # counterclockwise, as FFmpeg defines it
    assert turned[0].image.size == (64, 96)
    assert np.abs(np.asarray(turned[0].image).astype(int) - np.asarray(expected)).mean() < 2


@pytest.mark.parametrize("angle", [0, 90, 180])
def test_a_mirrored_video_is_upright(angle, tmp_path):
    """As mobile phones write what the front camera sees."""
    plain, other = (list(frames(video(tmp_path / f"{m}.mp4", turned=angle, mirrored=m))) for m in (False, True))
    # FFmpeg mirrors what was turned.
    expected = plain[-1].image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.abs(np.asarray(other[-1].image).astype(int) - np.asarray(expected)).mean() < 2


def test_pixels_of_a_turned_video(tmp_path):
    source = video(tmp_path / "a.mp4", turned=90, pixels=Fraction(2))
    with Video(source) as read, VideoWriter(tmp_path / "b.mp4", read) as written:
        for frame in read:
            written.add(frame.image, frame.facts["seconds"])
    with av.open(tmp_path / "b.mp4") as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(1, 2)


def test_a_last_frame_that_is_shown_for_long(tmp_path):
    """As in recordings of screens."""
    source = video(tmp_path / "a.mp4", frames=10, times=[100 * i for i in range(10)], last=5000, rate=10)
    with Video(source) as read:
        assert len(list(read)) == 10
        assert read.problem == ""


def test_what_no_encoder_takes_is_told_and_the_others_are_predicted(small_run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    with av.open(tmp_path / "in/a.avi", "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16500, 16, "yuvj444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16500, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    video(tmp_path / "in/b.mp4", frames=3)
    Image.new("RGB", (60, 20)).save(tmp_path / "in/d.png")
    model = ["--ckpt_path", str(small_run("classifier")), "--device", "cpu"]
    assert run(["predict", str(tmp_path / "in"), *model, "--pictures", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "a.mp4: pictures of 16500 x 16 pixels cannot be written (" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.mp4", "d.jpg"]


def test_a_disk_that_fails_while_a_video_is_read(small_run, tmp_path, capsys, monkeypatch):
    source, other = video(tmp_path / "a.mkv", frames=60), video(tmp_path / "b.mp4", frames=3)

    class Failing(io.FileIO):
        def read(self, size=-1):
            if self.tell() > 0.5 * source.stat().st_size:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: Failing(path) if path == source else opened(path, *a, **k))
    model = ["--ckpt_path", str(small_run("classifier")), "--device", "cpu", "--pictures", str(tmp_path / "out")]
    assert run(["predict", str(source), str(other), *model]) == 2
    assert re.search(r"a\.mkv: reading ended after \d+ frames: Input/output error", capsys.readouterr().err)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("kind", ["classifier", pytest.param("semantic_fpn", marks=pytest.mark.slow), "retinanet"])
def test_the_command(kind, small_run, tmp_path, capsys):
    times = [0, 40, 80, 200, 240, 700]  # its rate varies
    source = video(tmp_path / "in/clip.mov", frames=6, times=times, turned=90)
    model = small_run(kind) / "checkpoints/last.ckpt"
    arguments = ["--ckpt_path", str(model), "--device", "cpu", "--pictures", str(tmp_path / "out")]
    assert run(["predict", str(source.parent), *arguments, "--json", str(tmp_path / "found.json")]) == 0
    out = capsys.readouterr().out
    assert "clip.mov: 6 frames of 64 x 96, " in out
    assert " a second, " in out
    written, _ = facts(tmp_path / "out/clip.mp4")
    assert [found[:2] for found in written] == [(64, 96)] * 6
    assert [found[2] for found in written] == pytest.approx([time / 1000 for time in times], abs=0.002)
    found = json.loads((tmp_path / "found.json").read_text())
    entries, name = (found["images"], "file_name") if kind == "retinanet" else (found, "image")
    assert [entry["frame"] for entry in entries] == list(range(6))
    assert [entry["seconds"] for entry in entries] == pytest.approx([time / 1000 for time in times], abs=0.002)
    assert entries[3][name] == f"{source} frame 3"


@pytest.fixture
def broken(tmp_path):
    whole = video(tmp_path / "whole.mp4", frames=60, movflags="faststart")
    return {
        "cut": cut(whole, 0.9, tmp_path / "cut.mp4"),
        "cut.mkv": cut(video(tmp_path / "whole.mkv", frames=60), 0.7, tmp_path / "cut.mkv"),
        "no index": cut(video(tmp_path / "other.mp4"), 0.5),
    }


@pytest.mark.parametrize("name", ["cut", "cut.mkv"])
def test_what_is_left_of_a_video_is_written_and_told(name, broken, small_run, tmp_path, capsys):
    model = ["--ckpt_path", str(small_run("classifier")), "--device", "cpu"]
    assert run(["predict", str(broken[name]), *model, "--pictures", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    written, _ = facts(tmp_path / "out/cut.mp4")
    assert 0 < len(written) < 60
    assert f"cut off: it ends after {len(written)} frames, " in said.err.splitlines()[-1]
    assert " of 2.4 s" in said.err
    assert f"{len(written)} frames of 96 x 64" in said.out


def test_a_video_without_a_frame_leaves_nothing(broken, small_run, tmp_path, capsys):
    model = ["--ckpt_path", str(small_run("classifier")), "--device", "cpu"]
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(image)
    assert run(["predict", str(broken["no index"]), str(image), *model, "--pictures", str(tmp_path / "out")]) == 2
    assert "other.mp4: not a video that can be read" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg"]


def test_predict_in_python(broken, small_run, tmp_path):
    model = dgmn.load(small_run("classifier"), device="cpu")
    names = [result.name for result in model.predict(str(video(tmp_path / "a.mp4", frames=3)))]
    assert names == [f"{tmp_path / 'a.mp4'} frame {i}" for i in range(3)]
    with Video(broken["cut"]) as read:
        there = len(list(read))
    found = []
    with pytest.raises(InputError, match="cut off"):
        found.extend(model.predict(broken["cut"]))
    assert len(found) == there, "every frame before the damage"


def test_a_long_video_fits_into_memory(small_run, tmp_path):
    """Only the frames of a batch, and the one that is read, are kept."""
    alive, most = weakref.WeakSet(), 0

    def watched(path):
        for frame in frames(path):
            alive.add(frame)
            yield frame

    model = dgmn.load(small_run("classifier"), device="cpu")
    source = video(tmp_path / "long.mp4", frames=40, size=(192, 64))
    for _ in model.predict(watched(source), batch_size=4):
        most = max(most, len(alive))
    assert most <= 9


def test_a_playlist_is_no_video(tmp_path):
    """FFmpeg would open the files and addresses in it."""
    video(tmp_path / "secret.mp4")
    list_of_files = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n"
    (tmp_path / "x.mp4").write_text(list_of_files)
    with pytest.raises(InputError, match=r"x\.mp4: not a video that can be read"):
        Video(tmp_path / "x.mp4")


def test_without_pyav(small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dgmn_base.inputs.find_spec", lambda name: None)
    source = video(tmp_path / "photos/a.mp4")
    Image.new("RGB", (32, 32)).save(tmp_path / "photos/b.png")
    model = ["--ckpt_path", str(small_run("classifier")), "--device", "cpu"]
    told = f"{source}: videos need PyAV: pip install 'dgmn[video]'"
    assert run(["predict", str(source), *model]) == 2
    assert capsys.readouterr().err == f"dgmn: error: {told}\n"
    assert run(["predict", str(source.parent), *model]) == 0
    assert f"left out: {told}" in capsys.readouterr().err
