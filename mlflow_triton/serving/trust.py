"""Which servers gRPC trusts over TLS: those that HTTP trusts, where gRPC by itself knows only the certificates it brings."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import grpc

from mlflow_triton.errors import InvalidSetting

__all__ = ["credentials"]

#: gRPC's own setting, which goes before this.
OWN = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"


def credentials() -> grpc.ChannelCredentials:
    """Return credentials that trust the certificates of ``SSL_CERT_FILE``, or else of OpenSSL's own file, if there is one.

    Raises:
        InvalidSetting: The file cannot be read.
    """
    path = None if OWN in os.environ else ssl.get_default_verify_paths().cafile
    try:
        return grpc.ssl_channel_credentials(None if path is None else Path(path).read_bytes())
    except OSError as error:
        raise InvalidSetting(
            f"The trusted certificates in {path} cannot be read: {error.strerror}. Nothing was sent. Set SSL_CERT_FILE to a "
            "file that can, or write grpc:// for a server without TLS."
        ) from None
