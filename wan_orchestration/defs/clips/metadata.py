"""Clips as Dagster shows them."""

from collections.abc import Iterable
from typing import Any

import dagster as dg

from wan_orchestration.defs.metadata import animation, picture
from wan_orchestration.jobs.clips import OVERLAY, Clips
from wan_orchestration.protocol.messages import Notice, PreprocessResult


def clips_metadata(clips: Clips) -> dict[str, Any]:
    """Properties of any clips."""
    return {
        "model": clips.model,
        "mode": clips.mode,
        "frames": clips.driving.frames,
        "fps": float(clips.driving.fps),
        "size": f"{clips.width}x{clips.height}",
        "duration": clips.driving.duration,
        "audio": clips.sound.track is not None,
        "path": dg.MetadataValue.path(clips.folder),
    }


def placed_metadata(clips: Clips) -> dict[str, Any]:
    """Properties of ready clips that were copied. BadInput: a clip cannot be decoded."""
    from wan_orchestration.quality.thumbnails import contact_sheet  # noqa: PLC0415 (OpenCV, PyAV: only a run needs them)

    return {
        "contact_sheet": picture(contact_sheet(clips), "contact sheet"),
        "warnings": notices_table(Notice(text=notice) for notice in clips.notices),
        **clips_metadata(clips),
    }


def preprocessed_metadata(clips: Clips, result: PreprocessResult) -> dict[str, Any]:
    """Properties of clips that were made, and how they were made. BadInput: the overlay cannot be decoded."""
    from wan_orchestration.quality.thumbnails import overlay_preview  # noqa: PLC0415 (OpenCV, PyAV: only a run needs them)

    return clips_metadata(clips) | {
        "contact_sheet": picture(result.contact_sheet, "contact sheet"),
        **{
            f"contact_sheet_{number}": picture(one.contact_sheet, "contact sheet")
            for number, one in enumerate(result.characters, 2)
        },
        **({"characters": 1 + len(result.characters)} if result.characters else {}),
        "overlay": animation(overlay_preview(clips.folder / OVERLAY), "overlay"),
        "estimator": result.estimator,
        "retarget": result.retarget,
        **({"masks": result.masks} if result.masks else {}),
        "person_found": round(result.person_found / result.frames, 4),
        **({} if result.face_found is None else {"face_found": round(result.face_found / result.frames, 4)}),
        "warnings": notices_table(result.warnings),
        **{f"seconds_{phase}": round(seconds, 2) for phase, seconds in result.seconds.items()},
        "warm": result.warm,
        "peak_memory_gb": round(result.peak_memory_bytes / 1e9, 2),
        "settings": result.settings.model_dump(mode="json"),
    }


def notices_table(notices: Iterable[Notice]) -> dg.TableMetadataValue:
    """A row for each notice, with the frames that it is about."""
    rows = [
        dg.TableRecord({"what": notice.text, "frames": ", ".join(_range(*part) for part in notice.frames)})
        for notice in notices
    ]
    columns = [dg.TableColumn("what", "string"), dg.TableColumn("frames", "string")]
    return dg.MetadataValue.table(rows, schema=dg.TableSchema(columns))


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
