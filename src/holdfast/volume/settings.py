"""What may be said of a volume when it is made, and changed at any time after that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from holdfast.volume.groups import TenantGroup
from holdfast.volume.page_cache import PageCache
from holdfast.volume.volume import OnError, OnFull, ReadOnly, Volume


@dataclass(frozen=True, slots=True)
class VolumeSettings:
    """None: as it is; for a new volume, the default.

    quota_bytes      how much of it may be mapped; 0: as much as there is
    on_full_wait_s   how long a write waits for space before `on_full` counts
    group            name of the group that it is in
    read_only        NO ends what `on_full` or `on_error` began
    protected        it cannot be removed
    provisioned      space for all of it is held back
    """

    quota_bytes: int | None = None
    on_full_wait_s: int | None = None
    on_full: OnFull | None = None
    on_error: OnError | None = None
    group: TenantGroup | None = None
    read_only: ReadOnly | None = None
    protected: bool | None = None
    provisioned: bool | None = None


AS_BY_DEFAULT = VolumeSettings()


def apply_settings(volume: Volume, settings: VolumeSettings, cache: PageCache) -> Callable[[], None]:
    """Change a volume at once; what is returned changes it back."""
    before = VolumeSettings(
        volume.quota_bytes,
        volume.on_full_wait_s,
        volume.on_full,
        volume.on_error,
        volume.group,
        volume.read_only,
        volume.protected,
        volume.provisioned,
    )
    if settings.quota_bytes is not None:
        volume.set_quota(settings.quota_bytes)
    if settings.on_full_wait_s is not None:
        volume.on_full_wait_s = settings.on_full_wait_s
    if settings.on_full is not None:
        volume.on_full = settings.on_full
    if settings.on_error is not None:
        volume.on_error = settings.on_error
    if settings.group is not None and settings.group is not volume.group:
        volume.move_to(settings.group)
        cache.move_volume(volume.key_base, settings.group.memory)
    if settings.read_only is not None:
        volume.read_only = settings.read_only
    if settings.protected is not None:
        volume.protected = settings.protected
    if settings.provisioned is not None:
        volume.provisioned = settings.provisioned
    return lambda: _back(volume, before, cache)


def _back(volume: Volume, before: VolumeSettings, cache: PageCache) -> None:
    apply_settings(volume, before, cache)
