"""The functions of the model that a backend may replace, held by the model in one place."""

from dataclasses import dataclass

from vitcore.model.attention import (
    AttentionFunction,
    DropoutFunction,
    SelfAttentionFunction,
    attention,
    self_attention,
)
from vitcore.model.dropout import dropout


@dataclass(frozen=True)
class Functions:
    """Attention and dropout as the model calls them: `self_attention` where all tokens ask, `attention` by itself where the
    class token alone does.

    `model.functions = Functions(attention=mine)` changes every block at once.
    """

    attention: AttentionFunction = attention
    self_attention: SelfAttentionFunction = self_attention
    dropout: DropoutFunction = dropout
