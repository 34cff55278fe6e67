"""Records on disk: one run of bytes a sample in LitData's chunk format, with a manifest that knows every hash."""

from t2ikit.records.compressed import Compressed
from t2ikit.records.manifest import Manifest, StoredArray, TextSource
from t2ikit.records.record import Record, text_arrays
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import States, Tokens, quantise_tokens
from t2ikit.records.view import RecordView
from t2ikit.records.writing import write_set

__all__ = [
    "Compressed",
    "Manifest",
    "Record",
    "RecordSet",
    "RecordView",
    "States",
    "StoredArray",
    "TextSource",
    "Tokens",
    "quantise_tokens",
    "text_arrays",
    "write_set",
]
