"""The part of ml_collections that randmix uses.

Its own hints make every key of a config a union of six types.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import config_dict as config_dict
from ml_collections import config_flags as config_flags

class ConfigDict(Mapping[str, Any]):
    def __init__(
        self,
        initial_dictionary: Mapping[str, Any] | ConfigDict | None = ...,
        type_safe: bool = ...,
        *,
        sort_keys: bool = ...,
    ) -> None: ...
    def __getattr__(self, key: str) -> Any: ...
    def __setattr__(self, key: str, value: Any) -> None: ...
    def __getitem__(self, key: str) -> Any: ...
    def __setitem__(self, key: str, value: Any) -> None: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
