"""WSGI middleware that wakes functions scaled to zero and holds the request until they are ready."""

from .function_cache import FunctionCache, FunctionMeta
from .middleware import ScaleZeroMiddleware
from .model import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    InvalidFunctionName,
    MissingExtra,
    NotAvailable,
    ProviderError,
    ReplicaStatus,
    ScaleZeroError,
    SettingError,
    TooManyWaiting,
)
from .routing import by_header, by_host
from .scaler import FunctionScaler
from .settings import Settings

__all__ = [
    "Function",
    "FunctionCache",
    "FunctionFailed",
    "FunctionMeta",
    "FunctionNotFound",
    "FunctionScaler",
    "InvalidFunctionName",
    "MissingExtra",
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
