"""Publishing on the Hub: a model card written from facts, and an upload in a single commit."""

from hf_posswap.hub.adapter import adapter_card_of, push_adapter
from hf_posswap.hub.errors import HubError, UploadError
from hf_posswap.hub.publish import card_of, push_folder, push_model
from hf_posswap.hub.upload import Target, Upload

__all__ = [
    "HubError",
    "Target",
    "Upload",
    "UploadError",
    "adapter_card_of",
    "card_of",
    "push_adapter",
    "push_folder",
    "push_model",
]
