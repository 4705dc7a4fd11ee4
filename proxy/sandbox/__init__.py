"""The stand-in Logto and the sample app: what `postern demo`, `postern sandbox` and the tests run against."""

from .config import (
    SANDBOX_ADMIN_SECRET,
    SANDBOX_APP_ID,
    SANDBOX_APP_SECRET,
    SANDBOX_ROBOT_ID,
    SANDBOX_ROBOT_SECRET,
    SANDBOX_WEBHOOK_KEY,
    Lifetimes,
    Organization,
    SandboxConfig,
)
from .logto import create_logto
from .sample import create_sample
from .state import SandboxState

__all__ = [
    "SANDBOX_ADMIN_SECRET",
    "SANDBOX_APP_ID",
    "SANDBOX_APP_SECRET",
    "SANDBOX_ROBOT_ID",
    "SANDBOX_ROBOT_SECRET",
    "SANDBOX_WEBHOOK_KEY",
    "Lifetimes",
    "Organization",
    "SandboxConfig",
    "SandboxState",
    "create_logto",
    "create_sample",
]
