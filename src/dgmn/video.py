"""Reads videos frame by frame, and writes pictures as a video. Needs PyAV, the extra `video`."""

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from dgmn.errors import InputError, first_line
from dgmn.images import MAX_PIXELS, Named
from dgmn_base.files import check_file, writing
from dgmn_base.terminal import counted

# FFmpeg's names of the containers that are read. Others, such as playlists, name further files and addresses.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,asf,flv"
_ENCODERS = ("libx264", "libopenh264", "mpeg4")  # the first that this FFmpeg has
# The upright image, by what becomes of a step to the right and of one down, as (x, y).
_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
_SIDEWAYS = {turn for (right, *_), turn in _TURNS.items() if right == 0}
_TOLERATED = 0.5  # seconds that may be missing at the end
_TICK = Fraction(1, 90_000)  # fine enough for every usual rate, and for one that varies
_BT709 = 1  # FFmpeg's number of the colours of today's videos


class Video(AbstractContextManager["Video"]):
    """A video; iterating gives its frames as images, upright, one at a time.

    Args:
        path: the file: MP4, MOV, MKV, WebM, AVI, MPEG, WMV or FLV.

    Raises:
        InputError: PyAV is not installed, or the file is no video, or its frames are too large; the message says so.
        FileNotFoundError: there is no such file.

    Attributes:
        rate: frames a second, on average.
        total: about how many frames there are; 0 if the file does not say.
        problem: after the iteration: what is wrong with the file; "" if nothing is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._av = _pyav(path)
        self.path = Path(path)
        self.problem = ""
        self._failure = ""
        self._sideways = False  # whether upright images are as wide as the frames are high
        check_file(path)
        with ExitStack() as stack:
            file = stack.enter_context(self.path.open("rb"))
            try:
                options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
                self._container = stack.enter_context(self._av.open(file, options=options))
            except (self._av.FFmpegError, OSError) as error:
                why = error.strerror if self.path.stat().st_size else "the file is empty"
                raise InputError(f"{path}: not a video that can be read ({why})") from error
            if not self._container.streams.video:
                raise InputError(f"{path}: there is no video in this file")
            self._stream = self._container.streams.video[0]
            if self._stream.codec_context is None:
                raise InputError(f"{path}: a video of an unknown codec")
            self._check_size(self._stream.codec_context)
            self._stack = stack.pop_all()
        self.rate = _fraction(self._stream.average_rate) or _fraction(self._stream.guessed_rate) or Fraction(25)
        self._seconds = self._duration()
        self.total: int = self._stream.frames or round(self._seconds * self.rate)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Named]:
        start = last = None
        shown = 0.0  # seconds that the last frame is shown
        number = damaged = 0
        for frame in self._decoded():
            if frame is None or frame.is_corrupt:
                damaged += 1
            if frame is None:
                continue
            self._check_size(frame)
            time = frame.time
            if time is None or (last is not None and time <= last):  # a time that cannot be
                time = 0.0 if last is None else last + float(1 / self.rate)
            start, last = time if start is None else start, time
            shown = float((frame.duration or 0) * (_fraction(frame.time_base) or 0)) or float(1 / self.rate)
            image = frame.to_image()
            turn = self._turn(frame)
            self._sideways = turn in _SIDEWAYS
            yield Named(
                f"{self.path} frame {number}",
                image if turn is None else image.transpose(turn),
                {"frame": number, "seconds": round(time - start, 6)},
            )
            number += 1
        end = 0.0 if last is None or start is None else last - start
        if not number:
            self.problem = f"{self.path}: not one frame can be decoded{self._failure}"
        elif self._failure:
            self.problem = f"{self.path}: reading ended after {counted(number, 'frame')}{self._failure}"
        elif end + shown + float(1 / self.rate) + _TOLERATED < self._seconds:
            frames = counted(number, "frame")
            self.problem = f"{self.path}: cut off: it ends after {frames}, {end:.1f} of {self._seconds:.1f} s"
        elif damaged:
            self.problem = f"{self.path}: {damaged} frame{'s are' if damaged > 1 else ' is'} damaged or missing"

    def _decoded(self) -> Iterator[Any]:
        """The frames; None for a part that cannot be decoded."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            except self._av.FFmpegError:
                yield None
                if packet is None:
                    return
                continue
            except OSError as error:  # of the disk or the network
                self._failure = f": {error.strerror or first_line(error)}"
                return
            yield from frames
            if packet is None:
                return

    def _duration(self) -> float:
        """The duration of the video in seconds that the file tells; 0 if it does not."""
        if self._stream.duration:
            return float(self._stream.duration * (_fraction(self._stream.time_base) or 0))
        alone = len(self._container.streams) == 1  # a longer sound would count, too
        return self._container.duration / self._av.time_base if alone and self._container.duration else 0.0

    def _check_size(self, frame: Any) -> None:
        if frame.width * frame.height > MAX_PIXELS:
            raise InputError(
                f"{self.path}: frames of {frame.width} x {frame.height} pixels, at most {MAX_PIXELS:,} are accepted"
            )

    def _turn(self, frame: Any) -> Image.Transpose | None:
        """What makes the image upright, as the camera wrote it into the file."""
        matrix = next((x for x in frame.side_data if x.type == self._av.sidedata.sidedata.Type.DISPLAYMATRIX), None)
        if matrix is None:
            return None
        right_x, right_y, _, down_x, down_y, *_ = np.frombuffer(matrix, np.int32) / 65536
        return _TURNS.get((round(right_x), round(right_y), round(down_x), round(down_y)))

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width by height of a pixel of the upright images."""
        ratio = _fraction(self._stream.sample_aspect_ratio)
        return 1 / ratio if ratio and self._sideways else ratio


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Writes pictures as a video, H.264 in MP4 without sound; the file appears, whole, at the end of the `with` block.

    After an error, or without a picture, there is no new file.

    Args:
        path: path of the file.
        video: the video that the pictures are of; it gives their rate and times.

    Raises:
        InputError: the file cannot be written; there is then no new file.

    Attributes:
        frames: how many are written.
    """

    def __init__(self, path: Path, video: Video) -> None:
        self._av = _pyav(path)
        self.path = path
        self.video = video
        self.frames = 0
        self._last = -1  # the time of the last picture

    def __enter__(self) -> Self:
        self._writing = writing(self.path)
        self._container = self._av.open(self._writing.__enter__(), "w", format="mp4")
        self._stream: Any = None
        return self

    def add(self, picture: Image.Image, seconds: float) -> None:
        """Writes a picture that is shown from a time on; one of another size than the first is scaled to it.

        Raises:
            InputError: no encoder takes pictures of this size.
        """
        try:
            self._encode(picture, seconds)
        except self._av.FFmpegError as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
                raise
            size = f"{picture.width} x {picture.height} pixels"
            raise InputError(f"{self.path}: pictures of {size} cannot be written ({first_line(error)})") from error

    def _encode(self, picture: Image.Image, seconds: float) -> None:
        if self._stream is None:
            self._stream = self._opened(picture)
        size = (self._stream.width, self._stream.height)
        frame = self._av.VideoFrame.from_image(picture if picture.size == size else picture.resize(size))
        frame = frame.reformat(format=self._stream.pix_fmt, dst_colorspace="ITU709")
        frame.time_base = _TICK
        self._last = max(self._last + 1, round(seconds / _TICK))
        frame.pts = self._last
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def _opened(self, picture: Image.Image) -> Any:
        name = next(name for name in _ENCODERS if name in self._av.codecs_available)
        stream = self._container.add_stream(name, rate=self.video.rate, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height = picture.size
        odd = picture.width % 2 or picture.height % 2
        stream.pix_fmt = (
            "yuv444p" if odd and name == "libx264" else "yuv420p"
        )  # colours of 2 x 2 pixels need even sides
        context = stream.codec_context
        context.time_base = _TICK
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        if self.video.pixel_aspect is not None:
            context.sample_aspect_ratio = self.video.pixel_aspect
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure: Exception | None = None
        if error is None:
            try:
                if self._stream is not None:
                    self._container.mux(self._stream.encode(None))
                self._container.close()
            except Exception as caught:
                failure = error = caught
                kind, trace = type(caught), caught.__traceback__
        else:
            with suppress(Exception):  # the first error says more
                self._container.close()
        if error is None and not self.frames:
            kind, error = InputError, InputError(f"{self.path}: no frame to write")  # a file without frames is none
        self._writing.__exit__(kind, error, trace)
        if failure is not None:
            raise failure


def frames(path: str | os.PathLike[str]) -> Iterator[Named]:
    """The frames of a video; after the last one that can be decoded, what is wrong with the file is raised."""
    with Video(path) as video:
        yield from video
        if video.problem:
            raise InputError(video.problem)


def _fraction(number: Any) -> Fraction | None:
    """A ratio of PyAV, which has a type of its own from version 19 on; None if there is none."""
    return Fraction(number.numerator, number.denominator) if number and number.denominator else None


def _pyav(path: str | os.PathLike[str]) -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(f"{path}: videos need PyAV: pip install 'dgmn[video]'") from error
    return av
