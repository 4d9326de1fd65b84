"""Small videos for tests, made with PyAV."""

from fractions import Fraction

import av
import numpy as np


def video(
    path, frames=12, size=(96, 64), rate=25, turned=0, mirrored=False, times=None, pixels=None, last=None, **options
):
    """A video with a white bar that moves to the right over red above green.

    `times` are in milliseconds, and so is `last`, how long the last frame is shown; `pixels` is their width by height.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p"
        if turned or mirrored:
            stream.set_display_rotation(turned, hflip=mirrored)
        if pixels:
            stream.codec_context.sample_aspect_ratio = pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            picture = np.zeros((height, width, 3), np.uint8)
            picture[: height // 2], picture[height // 2 :] = (200, 30, 40), (30, 160, 60)
            picture[:, 4 * i : 4 * i + 8] = 255
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        packets = stream.encode(None)
        if last:
            packets[-1].duration = last
        container.mux(packets)
    return path


def cut(path, share, out=None):
    """The first part of a file."""
    content = path.read_bytes()
    (out or path).write_bytes(content[: int(len(content) * share)])
    return out or path
