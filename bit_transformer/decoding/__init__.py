"""Decoding: sessions that continue streams from a cache, the engines that compute their steps, sampling, generation."""

from bit_transformer.decoding.generation import generate as generate
from bit_transformer.decoding.generation import generate_bytes as generate_bytes
from bit_transformer.decoding.generation import infer_long as infer_long
from bit_transformer.decoding.generation import stream_bytes as stream_bytes
from bit_transformer.decoding.session import EngineName as EngineName
from bit_transformer.decoding.session import Session as Session
