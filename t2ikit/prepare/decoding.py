"""One photo to one record: cut, resized, with what its source says of it."""

from __future__ import annotations

from t2ikit.photos import BadImage, TooSmall, decode
from t2ikit.prepare.engine.shards import Rejected
from t2ikit.prepare.engine.work import HostWork
from t2ikit.prepare.sources import ImageList
from t2ikit.prepare.sources.captions import NO_CAPTION
from t2ikit.prepare.steps import hash_of, sha256_of_json
from t2ikit.records.compressed import stored_picture
from t2ikit.records.record import Record


class Decoding(HostWork):
    """Photos to records; ``crop_seed`` is that of random crops, None for centres."""

    def __init__(
        self,
        images: ImageList,
        size: tuple[int, int],
        strict: bool,
        digest: str,
        codec: str,
        min_side: int,
        crop_seed: int | None,
    ) -> None:
        self.images = images
        self.size = size
        self.strict = strict
        self.codec = codec
        self.min_side = min_side
        self.crop_seed = crop_seed
        self.identity = sha256_of_json([digest, size, len(images), codec])

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> bytes | Rejected:
        """The record of a photo.

        Raises:
            ValueError: it cannot be used, and ``strict`` is set.
        """
        caption = self.images.caption(index)
        try:
            if caption == "":
                raise BadImage(NO_CAPTION)
            pixels = decode(self.images.read(index), self.size, self._place(index), self.min_side)
            class_id = int(self.images.class_ids[index])
            metadata = {
                "key": self.images.keys[index],
                "class_id": class_id,
                "class_name": self.images.class_names[class_id],
                **({} if caption is None else {"caption": caption}),
            }
            return Record({"image": stored_picture(pixels, self.codec)}, metadata=metadata).to_bytes()
        except TooSmall as error:
            return Rejected(str(error))
        except BadImage as error:
            reason = str(error)
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
        except UnicodeEncodeError:
            reason = "its name is not UTF-8"
        if self.strict:
            raise refusal(self.images.where(index), reason)
        return Rejected(reason.replace("\t", " ").replace("\n", " "))

    def _place(self, index: int) -> float:
        """Where the part of a photo lies, a pure function of the seed and its name."""
        if self.crop_seed is None:
            return 0.5
        return hash_of(f"{self.crop_seed} {self.images.keys[index]}".encode("utf-8", "surrogateescape")) / 2**64


def refusal(where: str, reason: str) -> ValueError:
    """The error of ``--strict`` for a photo."""
    return ValueError(f"{where} cannot be used: {reason} (leave --strict out to continue without it)")
