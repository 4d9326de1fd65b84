"""Builds the native CPU kernels. Everything else about the package is in pyproject.toml.

The kernels are optional: without a C++ compiler the build warns, and the package runs on plain PyTorch.
"""

import os
import sys
from contextlib import suppress

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = ["csrc/dispatch.cpp", "csrc/portable.cpp", "csrc/avx2.cpp", "csrc/avx512.cpp"]
HEADERS = ["csrc/common.h", "csrc/dgmn.h", "csrc/kernels.h", "csrc/position.h", "csrc/gelu.h"]
# Operators of onnxruntime: one file that includes the kernels, and runs them on onnxruntime's threads.
OPERATORS = "csrc/onnxruntime.cpp"
FLAGS = [
    *("-std=c++14", "-O3", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-g0"),
]
# Apple's compiler has no OpenMP, so the kernels run on one thread there.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]


class BuildLibrary(build_ext):
    """Builds a plain shared library for ctypes. It is not a Python module, so one file serves every Python version."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or True  # both libraries at once

    def get_ext_filename(self, fullname):
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception:
            with suppress(FileNotFoundError):  # of an earlier build; no wheel must hold it
                os.remove(self.get_ext_fullpath(ext.name))
            raise

    def get_export_symbols(self, ext):
        return ext.export_symbols


class Wheel(bdist_wheel):
    """Tags the wheel by what it holds: it serves every Python and, without the kernels, every platform."""

    def run(self):
        self.run_command("build")
        if not any(map(os.path.exists, self.get_finalized_command("build_ext").get_outputs())):
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "dgmn._native",
            SOURCES,
            depends=["setup.py", *HEADERS],
            language="c++",
            extra_compile_args=FLAGS + OPENMP,
            extra_link_args=OPENMP,
            optional=True,
        ),
        Extension(
            "dgmn._onnxruntime",
            [OPERATORS],
            depends=["setup.py", *SOURCES, *HEADERS, "csrc/onnxruntime_api.h"],
            language="c++",
            extra_compile_args=FLAGS + ["-fopenmp-simd" for _ in OPENMP],  # its vector loops, not its threads
            optional=True,
        ),
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
