"""Explains why a download failed, and what to do."""

import errno
import os
from pathlib import Path

from wan_orchestration.errors import BadInput
from wan_orchestration.settings.environment import Environment

# Errors of the local disk, which a retry does not fix.
LOCAL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR}


class DownloadError(RuntimeError):
    """The hub or the network failed. A retry resumes the download and may succeed.

    BadInput is raised instead if only the user can help: a wrong repository, no permission, a full disk.
    """


def explain(error: BaseException, env: Environment, subject: Path) -> BadInput | DownloadError:
    """Converts an error of the client: says what failed for the file or folder `subject`, and what to do."""
    from modelscope_hub import errors as client

    if isinstance(error, client.FileDownloadError):
        # Prefers a failure that only the user can fix.
        failures = [explain(cause, env, subject / name) for name, cause in error.failed_files.items()]
        return next((failure for failure in failures if isinstance(failure, BadInput)), failures[0])
    reason = (getattr(error, "message", "") or str(error)).partition("\n")[0]
    if not reason or not reason.isascii():  # some of the client's messages are in Chinese
        reason = type(error).__name__
    if isinstance(error, client.AuthenticationError | client.PermissionDeniedError):
        return BadInput(
            f"{subject}: the hub refuses access to {env.model_id} ({reason}); check WAN_MODEL_ID, or set "
            "MODELSCOPE_API_TOKEN to a token that may read it"
        )
    if isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
        return BadInput(
            f"{subject}: cannot be written ({os.strerror(error.errno or 0)}); free some space or correct the "
            "permissions, or set WAN_MODELS_ROOT to another disk. The next download resumes this one"
        )
    if isinstance(error, client.FileIntegrityError):
        return DownloadError(
            f"{subject}: the content that the hub sends differs from its listing ({reason}). Several attempts "
            "failed and nothing was kept. Make sure that no sign-in page or proxy of the network answers in its place, "
            "and try again later, or try another WAN_MODEL_ENDPOINT"
        )
    if isinstance(error, client.NotExistError):
        return DownloadError(f"{subject}: the hub lists this file but does not have it; try again later")
    return DownloadError(
        f"{subject}: the download from {env.model_endpoint or 'ModelScope'} broke off ({reason}). Check the network "
        "(HTTPS_PROXY, NO_PROXY) and run again to resume it, or set WAN_CHECKPOINT_DIR to a snapshot that you have"
    )
