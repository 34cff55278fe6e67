"""Records on disk: one run of bytes a sample in LitData's chunk format, with a manifest that knows every hash."""

from t2ikit.records.manifest import Manifest
from t2ikit.records.record import Record, RecordView, Tokens, quantise_tokens
from t2ikit.records.record_set import RecordSet
from t2ikit.records.writing import write_set

__all__ = [
    "Manifest",
    "Record",
    "RecordSet",
    "RecordView",
    "Tokens",
    "quantise_tokens",
    "write_set",
]
