"""Where photos come from: folders, tars as they are downloaded, Parquet, WebDataset; on this machine or behind a URL.

Every source gives the same object, an :class:`ImageList`, whose photos are read one by one by their number, from loader
processes. ImageNet's tars and the folder that they unpack to give the same list, in the same order.
"""

from t2ikit.prepare.sources.files import SourceLost
from t2ikit.prepare.sources.image_list import ImageList, find_images

__all__ = ["ImageList", "SourceLost", "find_images"]
