"""WSGI middleware that wakes functions scaled to zero and holds the request until they are ready.

Public are ``scalezero_wsgi``, ``.providers``, ``.proxy``, ``.coordination.base``, ``.events``,
``.testing`` and the modules of ``.integrations``. All else may change in any release.
"""

from .activation.function_cache import FunctionCache
from .activation.scaler import FunctionScaler
from .activation.state import FunctionMeta
from .middleware import ScaleZeroMiddleware
from .model import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    InvalidFunctionName,
    MissingExtra,
    NoRoom,
    NotAvailable,
    ProviderError,
    ReplicaStatus,
    ScaleZeroError,
    SettingError,
    TooManyWaiting,
)
from .settings import Settings
from .web.routing import by_header, by_host

__all__ = [
    "Function",
    "FunctionCache",
    "FunctionFailed",
    "FunctionMeta",
    "FunctionNotFound",
    "FunctionScaler",
    "InvalidFunctionName",
    "MissingExtra",
    "NoRoom",
    "NotAvailable",
    "ProviderError",
    "ReplicaStatus",
    "ScaleZeroError",
    "ScaleZeroMiddleware",
    "SettingError",
    "Settings",
    "TooManyWaiting",
    "by_header",
    "by_host",
]
