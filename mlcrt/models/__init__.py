"""Model configurations, parameter names and rotary tables; `decoder.py` holds the network itself."""

from mlcrt.models.build import decoder_config
from mlcrt.models.config import DecoderConfig, MixtureOfExperts, Rope
from mlcrt.models.families import FAMILIES, Family
from mlcrt.models.names import Parameter, Piece, load, parameters, sources, verify

__all__ = [
    "FAMILIES",
    "DecoderConfig",
    "Family",
    "MixtureOfExperts",
    "Parameter",
    "Piece",
    "Rope",
    "decoder_config",
    "load",
    "parameters",
    "sources",
    "verify",
]
